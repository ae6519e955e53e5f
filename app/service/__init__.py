"""One request's way: context, chat template, tokens, engine, text."""

from app.service.embedding import Embeddings
from app.service.errors import (
    BadRequest,
    GenerationFailed,
    KnowledgeFailed,
    Loading,
    NotOffered,
    Overloaded,
    ServiceError,
    TooLong,
    UnknownContext,
)
from app.service.generation import Generation, Step, together
from app.service.model import Model
from app.service.prompts import (
    ChatPrompt,
    Constraint,
    JSONSchema,
    KnowledgeUse,
    Prompt,
    Regex,
    TextPrompt,
    ToolUse,
)
from app.service.service import Service

__all__ = [
    "BadRequest",
    "ChatPrompt",
    "Constraint",
    "Embeddings",
    "Generation",
    "GenerationFailed",
    "JSONSchema",
    "KnowledgeFailed",
    "KnowledgeUse",
    "Loading",
    "Model",
    "NotOffered",
    "Overloaded",
    "Prompt",
    "Regex",
    "Service",
    "ServiceError",
    "Step",
    "TextPrompt",
    "TooLong",
    "ToolUse",
    "UnknownContext",
    "together",
]
