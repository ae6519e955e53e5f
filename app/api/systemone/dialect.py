"""The route of System One."""

from __future__ import annotations

from app.api.dialect import JSON, Dialect, Operation, Reply, causes
from app.api.systemone.errors import ERRORS
from app.api.systemone.systemone import SystemOneReply, SystemOneRequest, systemone

_SYSTEM_ONE = Operation(
    method="POST",
    path="/v1/systemone",
    endpoint=systemone,
    summary="Answer typed questions about one state with probabilities",
    description=(
        "The state is computed once for all questions, and the prefix cache keeps it. An answer of type "
        "`error` says why its question cannot be answered."
    ),
    body=SystemOneRequest,
    examples={
        "Three questions": {
            "state": "I was charged twice. Please refund me today.",
            "questions": {
                "billing": {"type": "noul", "instructions": "Is this message about billing?"},
                "tone": {
                    "type": "choice",
                    "instructions": "What is the tone?",
                    "criteria": {"angry": "Upset or hostile", "calm": "Neutral or polite", "glad": None},
                },
                "urgency": {"type": "score", "criteria": ["Can wait", "This week", "Today"]},
            },
        }
    },
    replies={200: Reply("The answers.", {JSON: SystemOneReply})},
    errors=causes(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)

DIALECT = Dialect(
    name="System One",
    description="Typed questions about one state, in the form of the package typesafe-sdk.",
    error=ERRORS,
    operations=(_SYSTEM_ONE,),
)
