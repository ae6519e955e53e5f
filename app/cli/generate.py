"""``tokenstream generate``: one answer on the terminal, without a server."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import ValidationError

from app.api.http.problems import validation_problem
from app.api.tokenstream.token_stream import TokenStreamRequest
from app.config.errors import UserError
from app.config.settings import Settings
from app.service import Step, receive
from app.service.start import Start


class ArgumentError(UserError):
    """An argument of the command line is out of range."""

    exit_status = 2


async def generate(settings: Settings, request: TokenStreamRequest) -> None:
    """Stream the answer to standard output and its speed to standard error.

    Raises:
        UserError: The model cannot be loaded, or the request cannot be answered.
    """
    start = Start(settings)
    service = start.service
    try:
        context = request.context or settings.context_type
        await start.load(warm={context} & service.contexts.keys())
        [generation] = await service.generate(request.prompt(), request.overrides())
        try:
            await receive([generation], _print)
        finally:
            generation.close()
        sys.stdout.write("\n")
        print(
            f"{generation.n_generated} tokens at {generation.tokens_per_second:.1f} tokens per second, "
            f"the first after {generation.time_to_first_token:.2f} s ({generation.n_prompt} prompt tokens)",
            file=sys.stderr,
        )
    finally:
        await service.close()


def _print(_index: int, step: Step) -> None:
    sys.stdout.write(step.text)
    sys.stdout.flush()


def request_of(fields: dict[str, Any]) -> TokenStreamRequest:
    """Build the request from the arguments of the command line; None: absent.

    Raises:
        ArgumentError: A value is out of range.
    """
    try:
        return TokenStreamRequest.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        raise ArgumentError(validation_problem(error).message) from None
