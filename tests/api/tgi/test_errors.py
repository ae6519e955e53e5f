"""Error messages in TGI's words, and failed generations."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from app.api.app import create_app
from app.config.contexts import load_contexts
from app.config.settings import load
from app.engine.llama import Batch, Context
from app.service import Service
from app.telemetry.metrics import Metrics
from tests.api.tgi.tgi_calls import FRANCE, events, generate, post
from tests.conftest import MODEL, ROOT, Server

VALIDATION = "Input validation error: "
POSITIVE = "must be strictly positive"
GRAMMAR = "grammar is not valid: "


@pytest.mark.parametrize(
    ("parameters", "cause"),
    [
        ({"best_of": 0}, "`best_of` must be > 0 and <= 2. Given: 0"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
        ({"best_of": 2, "top_k": 5, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"temperature": 0}, f"`temperature` {POSITIVE}"),
        ({"temperature": -0.5}, f"`temperature` {POSITIVE}"),
        ({"repetition_penalty": 0}, f"`repetition_penalty` {POSITIVE}"),
        ({"frequency_penalty": 2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"frequency_penalty": -2.1}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"top_p": 1}, "`top_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"typical_p": 1.0}, "`typical_p` must be > 0.0 and < 1.0"),
        ({"top_k": 0}, f"`top_k` {POSITIVE}"),
        ({"top_k": -4}, f"`top_k` {POSITIVE}"),
        ({"max_new_tokens": 0}, f"`max_new_tokens` {POSITIVE}"),
        ({"stop": list("abcde")}, "`stop` supports up to 4 stop sequences. Given: 5"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
        ({"inputs": ""}, "`inputs` cannot be empty"),
        ({"truncate": 0}, "`truncate` must be strictly positive and less than 2047. Given: 0"),
        ({"truncate": 2048}, "`truncate` must be strictly positive and less than 2047. Given: 2048"),
        (
            {"max_new_tokens": 3000},
            "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 5 `inputs` tokens and 3000 "
            "`max_new_tokens`",
        ),
        (
            {"inputs": "word " * 3000, "max_new_tokens": None},
            "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3001 `inputs` tokens and 0 "
            "`max_new_tokens`",
        ),
        (
            {"inputs": " word" * 2048, "max_new_tokens": None},
            "`inputs` must have less than 2047 tokens. Given: 2048",
        ),
        ({"adapter_id": "mine"}, "adapter_id: 'mine' should be absent: LORA is empty"),
        ({"grammar": {"type": "regex", "value": {}}}, f"{GRAMMAR}value should be a regular expression"),
        ({"grammar": {"type": "json", "value": 3}}, f"{GRAMMAR}value should be a JSON Schema"),
        ({"grammar": {"type": "json_schema", "value": {}}}, f"{GRAMMAR}value should be a JSON Schema"),
        ({"grammar": {"type": "json", "value": "{"}}, f"{GRAMMAR}Expecting property name"),
        ({"grammar": {"type": "json", "value": "[" * 9999}}, GRAMMAR),
        ({"grammar": {"type": "regex", "value": "("}}, "grammar: cannot be enforced: "),
        ({"grammar": {"type": "json", "value": {"type": "colour"}}}, "grammar: cannot be enforced: "),
        ({"grammar": {"type": "lark", "value": ""}}, "parameters.grammar.type: should be 'json', "),
        ({"top_k": "many"}, 'parameters.top_k: should be a valid integer, not "many"'),
        ({"seed": -1}, "parameters.seed: should be greater than or equal to 0, not -1"),
        ({"seed": 2**64}, "parameters.seed: "),
        ({"do_sample": "yes"}, 'parameters.do_sample: should be a valid boolean, not "yes"'),
        ({"stop": "a"}, "parameters.stop: should be a valid "),
        ({"inputs": ["a", "b"]}, "inputs: should be a valid string"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_error_messages_equal_those_of_tgi(parameters: dict[str, Any], cause: str, server_url: str) -> None:
    for path in ("/generate", "/generate_stream", "/"):
        if "best_of" in parameters and path == "/generate_stream":
            cause = "`best_of` != 1 is not supported when streaming tokens"
        elif "best_of" in parameters and path == "/":
            continue
        response = post(server_url, path, **parameters)
        assert response.status_code == 422, response.text
        problem = response.json()
        assert problem.keys() == {"error", "error_type"}
        assert problem["error"].startswith(VALIDATION + cause)
        assert problem["error_type"] == "validation"


def test_a_stream_with_decoder_input_details_is_rejected(server_url: str) -> None:
    expected = VALIDATION + "`decoder_input_details` == true is not supported when streaming tokens"
    for path, fields in (("/generate_stream", {}), ("/", {"stream": True})):
        response = post(server_url, path, decoder_input_details=True, **fields)
        assert (response.status_code, response.json()["error"]) == (422, expected)


def test_settings_change_the_limits(start_server: Callable[..., Server]) -> None:
    url = start_server(
        MAX_BEST_OF="1",
        MAX_STOP_SEQUENCES="1",
        MAX_TOP_N_TOKENS="2",
        MAX_TOTAL_TOKENS="720",
        MAX_INPUT_LENGTH="520",
    ).wait_until().url  # fmt: skip
    for parameters, cause in (
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not allowed for this endpoint"),
        ({"stop": ["a", "b"]}, "`stop` supports up to 1 stop sequences. Given: 2"),
        ({"top_n_tokens": 3}, "`top_n_tokens` must be >= 0 and <= 2. Given: 3"),
        ({"truncate": 521}, "`truncate` must be strictly positive and less than 520. Given: 521"),
        ({"inputs": " word" * 600}, "`inputs` must have less than 520 tokens. Given: 600"),
        (
            {"inputs": " word" * 300, "max_new_tokens": 421},
            "`inputs` tokens + `max_new_tokens` must be <= 720. "
            "Given: 300 `inputs` tokens and 421 `max_new_tokens`",
        ),
    ):
        assert post(url, **parameters).json()["error"] == VALIDATION + cause
    assert (
        len(
            generate(url, inputs=" word" * 600, truncate=520, decoder_input_details=True)["details"][
                "prefill"
            ]
        )
        == 520
    )
    info = httpx.get(f"{url}/info").json()
    assert info["max_best_of"] == info["max_stop_sequences"] == 1
    assert info["max_top_n_tokens"] == 2
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (520, 720)


@pytest.mark.parametrize(
    "path", ["/generate", "/generate_stream", "/", "/invocations", "/tokenize", "/model/x"]
)
@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "malformed_json", 400),
        (b"[" * 9999, "malformed_json", 400),
        (b"\xff", "malformed_json", 400),
        (b"[]", "validation", 422),
        (b"{}", "validation", 422),
        (b'{"inputs": "' + b"x" * (1 << 20) + b'"}', "body_too_large", 413),
    ],
    ids=["cut", "deep", "no text", "list", "empty", "long"],
)
def test_unreadable_bodies_are_rejected(
    path: str, content: bytes, kind: str, status: int, server_url: str
) -> None:
    response = httpx.post(server_url + path, content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error_type"]) == (status, kind)


def test_a_full_queue_is_answered_429(narrow_url: str) -> None:
    def send(_: int) -> httpx.Response:
        grammar = {"type": "regex", "value": "[a-z]{9000}"}
        return post(narrow_url, max_new_tokens=100, grammar=grammar)

    with ThreadPoolExecutor(5) as pool:
        responses = list(pool.map(send, range(5)))
    rejected = [response for response in responses if response.status_code == 429]
    assert 0 < len(rejected) < 5
    assert rejected[0].json() == {"error": "Model is overloaded", "error_type": "overloaded"}
    assert rejected[0].headers["retry-after"]


# --- forced faults, in a server in this process


@pytest.fixture(scope="module")
def service() -> Service:
    settings = load(
        env_file=None,
        n_ctx=1024,
        max_sequences=2,
        model_threads=1,
        flash_attention="on",
        speculation="off",
        prefix_cache_mb=0,
    )
    return Service(settings, load_contexts(ROOT / "config/prompt_config.toml"), Metrics("test"))


@pytest.fixture(scope="module")
def url_here(service: Service) -> Iterator[str]:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.load(MODEL, None, warm=())
        yield
        await service.close()

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service, lifespan), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def fail_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make every decode fail after a number of successful ones."""

    decode = Context.decode

    def fail_after(n_decodes: int) -> None:
        remaining = n_decodes

        def failing(self: Context, batch: Batch) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise RuntimeError("forced")
            decode(self, batch)

        monkeypatch.setattr(Context, "decode", failing)

    return fail_after


FAILED = {
    "error": "Request failed during generation: the engine failed: forced",
    "error_type": "generation",
}


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
def test_a_failed_prefill_is_answered_424(
    path: str, url_here: str, fail_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(0)
    response = post(url_here, path, inputs=f"Prefill, {path}")
    assert (response.status_code, response.json()) == (424, FAILED)
    monkeypatch.undo()
    assert generate(url_here)["generated_text"], "the next request succeeds"


def test_a_failed_decode_is_an_error_or_the_last_event(
    url_here: str, fail_after: Callable[[int], None]
) -> None:
    fail_after(3)
    assert post(url_here, inputs="Later: one").json() == FAILED
    fail_after(3)
    *parts, last = events(post(url_here, "/generate_stream", inputs="Later: two"))
    assert 1 <= len(parts) <= 3
    assert all(part["token"]["text"] for part in parts)
    assert last == FAILED


def test_an_internal_error_is_answered_500(
    url_here: str, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(*_: Any, **__: Any) -> Any:
        raise RuntimeError("forced")

    monkeypatch.setattr(service, "generate", generate)
    response = post(url_here, inputs=FRANCE)
    assert response.status_code == 500
    request_id = response.headers["x-request-id"]
    assert response.json() == {
        "error": "Incomplete generation: internal server error; "
        f"see request_id={request_id} in the server's log",
        "error_type": "incomplete_generation",
    }
