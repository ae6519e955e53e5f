"""Print the answers that the `text-generation` client gets from a server, as a JSON object.

The Python of the client's own environment runs this: python text_generation_script.py URL
"""

import asyncio
import json
import sys

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType

PROMPT = "The capital of France is"


def synchronous_answers(url: str) -> dict[str, object]:
    """Answers to the synchronous client."""
    client = Client(url, timeout=60)
    whole = client.generate(PROMPT, max_new_tokens=12, decoder_input_details=True, top_n_tokens=2)
    sampled = client.generate(PROMPT, max_new_tokens=12, do_sample=True, best_of=2, temperature=0.9)
    grammar = Grammar(type=GrammarType.Regex, value="[0-9]{4}")
    constrained = client.generate(PROMPT, max_new_tokens=12, grammar=grammar, repetition_penalty=1.1)
    parts = list(client.generate_stream(PROMPT, max_new_tokens=12, stop_sequences=["absent"]))
    chat = client.chat([{"role": "user", "content": "Say hi."}], max_tokens=8)
    try:
        client.generate("word " * 5000)
        error_message = None
    except ValidationError as error:
        error_message = str(error)
    return {
        "text": whole.generated_text,
        "finish_reason": whole.details.finish_reason,
        "prefill": [token.logprob for token in whole.details.prefill],
        "n_top_tokens": [len(top) for top in whole.details.top_tokens or []],
        "n_best_of": len(sampled.details.best_of_sequences or []),
        "seed": sampled.details.seed,
        "constrained": constrained.generated_text,
        "streamed": "".join(part.token.text for part in parts),
        "last": parts[-1].generated_text,
        "n_generated": parts[-1].details.generated_tokens,
        "chat": chat.choices[0].message.content,
        "error_message": error_message,
    }


async def asynchronous_answers(url: str) -> dict[str, object]:
    """Answers to the asynchronous client."""
    client = AsyncClient(url, timeout=60)
    whole = await client.generate(PROMPT, max_new_tokens=12)
    parts = [part async for part in client.generate_stream(PROMPT, max_new_tokens=12)]
    return {
        "async_text": whole.generated_text,
        "async_streamed": "".join(part.token.text for part in parts),
    }


if __name__ == "__main__":
    print(json.dumps(synchronous_answers(sys.argv[1]) | asyncio.run(asynchronous_answers(sys.argv[1]))))
