"""Why a request is not answered, in terms that every dialect can put in its own."""

from __future__ import annotations


class ServiceError(Exception):
    """A request that cannot be answered. ``field`` names what in it is at fault, where something is."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Loading(ServiceError):
    """The model is not loaded yet."""


class NotOffered(ServiceError):
    """The server was started without what the request needs."""


class UnknownContext(ServiceError):
    """The request names a context that is not defined."""


class BadRequest(ServiceError):
    """A value of the request does not fit this model or its limits."""


class TooLong(BadRequest):
    """The prompt, or prompt and answer together, exceed what a request may have."""


class Overloaded(ServiceError):
    """Too many requests wait."""


class KnowledgeFailed(ServiceError):
    """The index of the documents cannot be read."""


class GenerationFailed(ServiceError):
    """The engine could not complete the answer."""
