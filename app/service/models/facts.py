"""Facts about a model that is not loaded, from the header of its file or from MODELS_FILE."""

from __future__ import annotations

from app.config.named_models import named_model
from app.engine.llama.gguf import read_header
from app.fit.memory_plan import MemoryPlan
from app.service.models.entries import ModelFacts
from app.weights.served import ServedModel


def facts_of(served: ServedModel, plan: MemoryPlan | None) -> ModelFacts:
    """The facts; ``plan``: of a model whose file is here."""
    path, settings = served.path, served.settings
    if path is None or plan is None:
        assert settings.model is not None
        trained = named_model(settings.model, settings.models_file).context
        return ModelFacts(served.name, 0, "", served.n_bytes, trained)
    header = read_header(path)
    description = f"{header.architecture} {header.n_weights / 1e6:.2f}M"
    n_tokens = plan.n_ctx // plan.max_sequences
    return ModelFacts(served.name, int(path.stat().st_mtime), description, served.n_bytes, n_tokens)
