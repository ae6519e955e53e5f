"""Variables of the environment that have no effect, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.config.settings import Settings

# Variables of similar servers, without an equivalent here.
_FOREIGN = {
    "HTTP_WORKERS": "one event loop serves all connections; MODEL_THREADS sets the compute threads",
    "RUST_LOG": "LOG_LEVEL sets the minimum level of log lines",
}
_WITH_MODELS = ("models_pinned", "models_at_start", "idle_unload")
_WITH_KNOWLEDGE = ("data_path", "knowledge_index", "model_prompt_template")


def unused_variables(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    """Messages about variables that are set and have no effect."""
    for name, reason in _FOREIGN.items():
        if environment.get(name):
            yield f"{name}={environment[name]} has no effect: {reason}"
    if settings.knowledge == "off":
        for name in sorted(settings.model_fields_set.intersection(_WITH_KNOWLEDGE)):
            yield f"{name.upper()} has no effect without a knowledge base; set KNOWLEDGE=on"
    if not settings.models:
        for name in sorted(settings.model_fields_set.intersection(_WITH_MODELS)):
            yield f"{name.upper()} has no effect without MODELS"
    if settings.main_gpu and not settings.model_gpu_layers:
        yield f"MAIN_GPU={settings.main_gpu} has no effect: MODEL_GPU_LAYERS is 0"
