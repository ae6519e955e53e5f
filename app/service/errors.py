"""Errors of requests. Each dialect maps them to its error format."""

from __future__ import annotations

from app.config.errors import UserError


class ServiceError(UserError):
    """A rejected or failed request. ``field``: name of the invalid field, if any."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Loading(ServiceError):
    """The model is not loaded yet."""


class LoadFailed(ServiceError):
    """The model of the request cannot be loaded."""


class NotOffered(ServiceError):
    """The request needs a feature that is not enabled."""


class Forbidden(ServiceError):
    """The key of the client does not allow the request."""


class UnknownContext(ServiceError):
    """The request names an undefined context."""


class UnknownModel(ServiceError):
    """The request names a model that is not served."""


class BadRequest(ServiceError):
    """A value is invalid for this model or its limits."""


class TooLong(BadRequest):
    """The prompt, or prompt plus answer, exceeds a token limit."""


class Overloaded(ServiceError):
    """The queue is full. ``retry_after``: expected seconds until a place is free."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KnowledgeFailed(ServiceError):
    """The index of the documents cannot be read."""


class GenerationFailed(ServiceError):
    """The engine failed before the answer was complete."""
