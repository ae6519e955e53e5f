"""Kinds of GGUF files, recognized by their headers before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

from app.engine.llama.gguf import Header

# Values of pooling_type in llama.cpp.
_NO_POOLING, _RANK = 0, 4
_EMBEDS = re.compile(r"bert|embed|t5encoder")
_EMBEDDING, _RERANKING = "EMBEDDING_MODEL", "RERANK_MODEL"


def unsuitable(header: Header, variable: str, part: int, n_parts: int) -> str:
    """Why a file cannot be the model of a setting, with a remedy; empty if it can.

    Args:
        header: Header of the file.
        variable: The setting. All except EMBEDDING_MODEL and RERANK_MODEL name a model that generates text.
        part: Number of the part, by the file's name, from 0.
        n_parts: Number of parts, by the file's name; 1 if the model is not split.
    """
    if reason := _no_model(header, part, n_parts):
        return reason
    kind = f"({header.architecture})"
    pooling = header.of_architecture("pooling_type")
    reranks = pooling == _RANK
    if variable == _RERANKING:
        return ""
    if reranks:
        return f"it is a reranker {kind}, so set RERANK_MODEL to it"
    if variable == _EMBEDDING:
        return ""
    if pooling not in (None, _NO_POOLING) or _EMBEDS.search(header.architecture):
        return f"it is an embedding model {kind}, so set EMBEDDING_MODEL to it"
    if header.of_architecture("attention.causal") is False:
        return f"it does not generate text from left to right {kind}"
    return ""


def _no_model(header: Header, part: int, n_parts: int) -> str:
    values = header.values
    kind = values.get("general.type")
    if kind == "adapter" or "adapter.type" in values:
        base = values.get("general.base_model.0.name")
        of_base = f" of {base}" if base else ""
        return f"it is a LoRA adapter{of_base}, so name its base model here, and set LORA=NAME=PATH to it"
    if kind == "mmproj" or header.architecture == "clip":
        return "it is the projector of a vision model, so name the file of the language model beside it"
    if kind == "imatrix":
        return "it is an importance matrix for quantization, so name the file of a model"
    if header.n_tensors == 0 and n_parts == 1:
        return "it has a vocabulary and no weights, so name the file with the weights"
    return _misnamed_part(values, part, n_parts)


def _misnamed_part(values: Any, part: int, n_parts: int) -> str:
    of_header = values.get("split.no", 0), max(values.get("split.count", 0), 1)
    if of_header == (part, n_parts):
        return ""
    number, count = of_header
    if count == 1:
        return "its name is that of a part of a split model, but it is not a part, so rename it"
    return (
        f"it is part {number + 1} of {count} of a split model, so end its name with "
        f"-{number + 1:05}-of-{count:05}.gguf, and name the first part"
    )
