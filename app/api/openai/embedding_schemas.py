"""What requests for vectors may say in the OpenAI dialect, and what is answered."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.api.http.vectors import MOST_INPUTS

_Text = Annotated[str, Field(min_length=1)]
_Tokens = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MOST_INPUTS)]
_Input = (
    _Text
    | Annotated[list[_Text], Field(min_length=1, max_length=MOST_INPUTS)]
    | _Tokens
    | Annotated[list[_Tokens], Field(min_length=1, max_length=MOST_INPUTS)]
)


def _checked(given: Any) -> Any:
    """Say in one sentence what is wrong; each of the alternatives would complain on its own."""
    entries = given if isinstance(given, list) else [given]
    if len(entries) > MOST_INPUTS:
        raise ValueError(f"should have at most {MOST_INPUTS} entries, not {len(entries)}")
    if not entries or given == "":
        raise ValueError("should not be empty")
    kinds = {type(entry) for entry in entries}
    if len(kinds) > 1 or not kinds <= {str, int, list} or (kinds == {int} and entries is not given):
        raise ValueError("should be a text, a list of texts, tokens, or a list of lists of tokens")
    empty = next((index for index, entry in enumerate(entries) if entry in ("", [])), None)
    if empty is not None:
        raise ValueError(f"entry {empty} should not be empty")
    if kinds != {str}:
        tokens = [token for entry in entries for token in (entry if isinstance(entry, list) else [entry])]
        wrong = [token for token in tokens if type(token) is not int or not 0 <= token < 2**31]
        if wrong:
            raise ValueError(f"tokens should be integers from 0, not {json.dumps(wrong[0])[:60]}")
    return given


class EmbeddingsRequest(BaseModel):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Annotated[
        _Input,
        BeforeValidator(_checked, json_schema_input_type=_Input),
        Field(
            description="A text or its tokens, or a list of either. Tokens are those of the embedding model, "
            "its own before and behind the text included."
        ),
    ]
    model: Annotated[
        str | None, Field(description="Any name: the embedding model that is there answers.")
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None,
        Field(description="`base64` is that of the numbers as 32-bit floats, little-endian."),
    ] = None
    dimensions: Annotated[
        int | None,
        Field(
            ge=1,
            description="How many numbers a vector has: all, or fewer where the model was trained for that.",
        ),
    ] = None
    user: str | None = None  # of no influence

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """The texts, one by one."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: Annotated[int, Field(description="Which of the texts, from 0.")]
    embedding: Annotated[list[float] | str, Field(description="Of length 1; a text with `base64`.")]


class EmbeddingUsage(BaseModel):
    """How many tokens were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors of all texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
