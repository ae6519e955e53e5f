"""Print the answers that LlamaIndex's clients get from a server, as a JSON object.

The Python of the clients' own environment runs this: python llama_index_script.py URL
"""

import itertools
import json
import sys
from typing import Literal

import ollama
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.ollama import Ollama
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

QUESTION = [ChatMessage(role="user", content="Where is located Paris ?")]
TOO_LONG = [ChatMessage(role="user", content="word " * 5000)]


class Mood(BaseModel):
    """The mood of a text."""

    mood: Literal["positive", "negative"]


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def answers_to(llm: FunctionCallingLLM) -> dict[str, object]:
    """Answers to a client: whole, streamed, as an object, as a tool call; an error and a cut stream."""
    tool = FunctionTool.from_defaults(fn=add)
    called = llm.chat_with_tools([tool], user_msg="Add 2 and 3.", tool_required=True)
    calls = llm.get_tool_calls_from_response(called, error_on_no_tool_call=False)
    program = FunctionCallingProgram.from_defaults(
        output_cls=Mood, llm=llm, prompt_template_str="How does 'I love it' feel?", tool_required=True
    )
    begun = list(itertools.islice(llm.stream_chat(QUESTION), 2))
    try:
        llm.chat(TOO_LONG)
        error = ""
    except Exception as problem:
        error = str(problem)
    return {
        "whole": llm.chat(QUESTION).message.content,
        "streamed": "".join(part.delta or "" for part in llm.stream_chat(QUESTION)),
        "begun": begun[-1].message.content,
        "calls": [[call.tool_name, call.tool_kwargs] for call in calls],
        "mood": program().mood if isinstance(llm, OpenAILike) else None,
        "error": error,
    }


if __name__ == "__main__":
    url = sys.argv[1]
    of_openai = OpenAILike(
        model="any",
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=0,
        max_tokens=60,
        max_retries=0,
        timeout=90,
    )
    of_ollama = Ollama(
        model=ollama.Client(url).list().models[0].model or "",
        base_url=url,
        temperature=0,
        request_timeout=90,
        additional_kwargs={"num_predict": 60},
    )
    print(json.dumps({"openai": answers_to(of_openai), "ollama": answers_to(of_ollama)}))
