"""A bare streaming route over OpenVINO GenAI, with requests and events of llama-server's ``/completion``.

.venv/openvino/bin/python -m bench.openvino.server MODEL PORT THREADS SLOTS
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import openvino_genai as ov
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.openvino.pipeline import greedy, load

# Turns of the event loop after a step. A new request takes three: accept, read, add.
_TURNS = 3


class Answer:
    """The tokens of one request and their text.

    Attributes:
        tokens: All generated tokens.
        text: Text that is not sent yet.
        status: Status in the pipeline.
        changed: Set after a step that changed one of them.
    """

    def __init__(self, handle: ov.py_openvino_genai.GenerationHandle) -> None:
        self._handle = handle
        self._begin, self._decoded = 0, 0  # indices of tokens
        self.tokens: list[int] = []
        self.text = ""
        self.status = ov.GenerationStatus.RUNNING
        self.changed = anyio.Event()

    def receive(self) -> bool:
        """Take new tokens and the status from the pipeline. Returns whether there are any."""
        n_tokens, status = len(self.tokens), self.status
        while self._handle.can_read():
            for output in self._handle.read().values():
                self.tokens += output.generated_ids
        self.status = self._handle.get_status()
        return len(self.tokens) > n_tokens or self.status != status

    @property
    def windows(self) -> tuple[list[int], list[int]]:
        """The tokens of the last piece of text, without and with the new tokens.

        The text of a token depends on its neighbours. The difference between both texts is the new piece.
        """
        return self.tokens[self._begin : self._decoded], self.tokens[self._begin :]

    def add(self, piece: str) -> None:
        """Add the text of the new tokens. It is empty until the last byte of a character."""
        if piece:
            self._begin, self._decoded = self._decoded, len(self.tokens)
            self.text += piece
        self.changed.set()

    def cancel(self) -> None:
        self._handle.cancel()


class Engine:
    """The pipeline and its requests.

    ``step`` of the pipeline holds Python's GIL, so steps run in the thread of the event loop.
    """

    def __init__(self, model: str, n_threads: int, n_slots: int) -> None:
        self._pipeline = load(model, n_threads=n_threads, n_sequences=n_slots, keep_prefixes=True)
        self._tokenizer = self._pipeline.get_tokenizer()
        self._ids = itertools.count()
        self._answers: list[Answer] = []
        self._added = anyio.Event()
        # max_num_seqs of the scheduler does not limit the sequences of a step.
        self._slots = anyio.Semaphore(n_slots)

    async def add(self, prompt: str, n_tokens: int) -> tuple[Answer, int]:
        """Start a request in a free slot. Returns its answer and the number of prompt tokens."""
        tokens = self._tokenizer.encode(prompt).input_ids
        await self._slots.acquire()
        answer = Answer(self._pipeline.add_request(next(self._ids), tokens, greedy(n_tokens)))
        self._answers.append(answer)
        self._added.set()
        return answer, tokens.shape[1]

    def step(self) -> bool:
        """Run one step and hand out its tokens. Returns whether requests remain."""
        self._pipeline.step()
        changed = [answer for answer in self._answers if answer.receive()]
        windows = [window for answer in changed for window in answer.windows]
        # One call, because each has a fixed cost of a third of a millisecond.
        texts = self._tokenizer.decode(windows) if windows else []
        for answer, known, whole in zip(changed, texts[::2], texts[1::2], strict=True):
            answer.add(whole[len(known) :])
        for answer in [answer for answer in self._answers if answer.status != ov.GenerationStatus.RUNNING]:
            self._answers.remove(answer)
            self._slots.release()
        return bool(self._answers)

    async def run(self) -> None:
        """Step while there are requests."""
        while True:
            if not self._answers:
                self._added = anyio.Event()
                await self._added.wait()
            self.step()
            for _ in range(_TURNS):
                await anyio.lowlevel.checkpoint()


async def _events(engine: Engine, prompt: str, n_tokens: int) -> AsyncIterator[str]:
    """Server-sent events of an answer: one per step that completed text, and one with the token counts."""
    answer, n_prompt = await engine.add(prompt, n_tokens)
    try:
        while answer.status == ov.GenerationStatus.RUNNING:
            await answer.changed.wait()
            answer.changed = anyio.Event()
            piece, answer.text = answer.text, ""
            if piece:
                yield _event(content=piece, stop=False)
        if answer.status != ov.GenerationStatus.FINISHED:
            yield _event(error=f"the pipeline ended the request with status {answer.status.name}")
            return
        counts = {"tokens_evaluated": n_prompt, "tokens_predicted": len(answer.tokens)}
        yield _event(content="", stop=True, **counts)
    finally:
        answer.cancel()  # the client may have closed the connection


def _event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


async def main(model: str, port: int, n_threads: int, n_slots: int) -> None:
    """Serve until a signal. A fault of the engine ends the process."""
    engine = Engine(model, n_threads, n_slots)
    await engine.add("Geese?", 2)
    while engine.step():  # the first steps compile kernels
        pass

    async def completion(request: Request) -> Response:
        fields = await request.json()
        events = _events(engine, fields["prompt"], fields["n_predict"])
        return StreamingResponse(events, media_type="text/event-stream")

    async def health(_: Request) -> Response:
        return PlainTextResponse("ready")

    app = Starlette(routes=[Route("/completion", completion, methods=["POST"]), Route("/health", health)])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        await server.serve()
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], *map(int, sys.argv[2:]), backend_options={"use_uvloop": True})
