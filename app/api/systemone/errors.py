"""Errors of System One: a list ``detail``, as its clients read it."""

from __future__ import annotations

from typing_extensions import TypedDict

from app.api.dialect import ErrorFormat, Problem


class ErrorDetail(TypedDict):
    """An invalid field, or the reason for a failure."""

    loc: list[str]
    msg: str
    type: str


class SystemOneError(TypedDict):
    """Reasons for a rejected or failed request."""

    detail: list[ErrorDetail]


def systemone_body(problem: Problem) -> SystemOneError:
    place = ["body", *problem.field.split(".")] if problem.field else []
    # Clients put the place before the message.
    message = problem.message.removeprefix(f"{problem.field}: ")
    return {"detail": [{"loc": place, "msg": message, "type": problem.kind}]}


ERRORS = ErrorFormat(SystemOneError, systemone_body)
