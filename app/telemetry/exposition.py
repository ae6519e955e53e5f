"""Text of the metrics. The encoders of prometheus_client take 2.5 to 4 ms: they validate all names again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import DOTS, VALUES
from prometheus_client.utils import floatToGoString

_number: Callable[[float], str] = floatToGoString


def encoded(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics of a registry, and their content type.

    Args:
        registry: Counters, gauges and histograms, without units, exemplars and timestamps. Names consist of
            ASCII letters, digits and underscores.
        accept: The header of the request, which selects the format.
    """
    encode, content_type = choose_encoder(accept)
    if content_type.endswith((DOTS, VALUES)):  # names are escaped
        return encode(registry), content_type
    form = _openmetrics if content_type.startswith("application/openmetrics-text") else _text
    return "".join(form(registry.collect())).encode(), content_type


def _openmetrics(metrics: Iterable[Metric]) -> Iterator[str]:
    for metric in metrics:
        yield _head(metric.name, metric.documentation.replace('"', r"\""), metric.type)
        for name, labels, value, *_ in metric.samples:
            yield f"{_series(name, tuple(labels.items()))} {_number(value)}\n"
    yield "# EOF\n"


def _text(metrics: Iterable[Metric]) -> Iterator[str]:
    for metric in metrics:
        suffix = "_total" if metric.type == "counter" else ""
        yield _head(metric.name + suffix, metric.documentation, metric.type)
        created = f"{metric.name}_created"  # a metric of its own in this format
        creations = []
        for name, labels, value, *_ in metric.samples:
            line = f"{_series(name, tuple(labels.items()))} {_number(value)}\n"
            if name == created:
                creations.append(line)
            else:
                yield line
        if creations:
            yield _head(created, metric.documentation, "gauge")
            yield from creations


def _head(name: str, documentation: str, kind: str) -> str:
    return f"# HELP {name} {documentation}\n# TYPE {name} {kind}\n"


@lru_cache(8192)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    """The name of a sample with its labels."""
    pairs = [f'{label}="{_escaped(value)}"' for label, value in sorted(labels)]
    return f"{name}{{{','.join(pairs)}}}" if pairs else name


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
