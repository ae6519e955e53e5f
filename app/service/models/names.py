"""Names of models and adapters in requests."""

from __future__ import annotations

from collections.abc import Sequence

from app.service.errors import UnknownModel
from app.service.models.entries import Entry

_ANY_TAG = ":latest"  # of Ollama's clients


def find(entries: Sequence[Entry], name: str | None) -> Entry:
    """The model with a name. None: the default, which is the first. A single model has any name.

    Raises:
        UnknownModel: No model has the name.
    """
    if name is None or len(entries) == 1:
        return entries[0]
    known = {entry.name: entry for entry in entries}
    name = name.removesuffix(_ANY_TAG)  # names of models have no colon
    if (entry := known.get(name)) is not None:
        return entry
    if (with_adapter := known.get(name.rpartition(":")[0])) and with_adapter.adapters:
        return with_adapter  # ``adapter_of`` checks the adapter
    return _with_adapter(entries, name)


def _with_adapter(entries: Sequence[Entry], name: str) -> Entry:
    """The only model that has an adapter.

    Raises:
        UnknownModel: There is none, or several.
    """
    found = [entry for entry in entries if name in entry.adapters]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{entry.name}:{name}" for entry in found)
        raise UnknownModel(f"{name[:100]!r} is an adapter of several models: {names}", field="model")
    names = ", ".join(entry.name for entry in entries)
    raise UnknownModel(f"{name[:100]!r} does not exist; served are: {names}", field="model")


def adapter_of(entry: Entry, name: str | None) -> str:
    """The adapter that the name of a model ends with; empty: none.

    Raises:
        UnknownModel: The model has no such adapter.
    """
    if name is None or not entry.adapters or name == entry.name:
        return ""
    model, colon, adapter = name.removesuffix(_ANY_TAG).rpartition(":")
    if adapter in entry.adapters:
        return adapter
    if colon and model == entry.name:
        served = ", ".join(f"{entry.name}:{one}" for one in entry.adapters)
        problem = f"{name[:100]!r} does not exist; served are: {entry.name}, {served}"
        raise UnknownModel(problem, field="model")
    return ""
