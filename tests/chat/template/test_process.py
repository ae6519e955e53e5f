"""The process of a template has limits of time and memory, and ends with the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.chat.template.process import TemplateProcess
from app.chat.template.sandbox import TemplateFailure, TemplateRejection, TemplateTimeout
from tests.chat.sample_templates import CHATML

ROOT = Path(__file__).resolve().parents[3]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory and has /proc")
HELLO = [{"role": "user", "content": "Hello"}]

ENDLESS = (
    "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
GROWING = "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
# Each list contains the previous one twice. Writing the last takes 2^60 steps in C.
NESTED = "{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"


@pytest.fixture
def start() -> Iterator[Callable[..., TemplateProcess]]:
    started: list[TemplateProcess] = []

    def start(source: str, time_limit: float = 10) -> TemplateProcess:
        started.append(TemplateProcess(source, {"bos_token": "<s>"}, time_limit=time_limit))
        return started[-1]

    yield start
    for process in started:
        process.close()


def pid_of(process: TemplateProcess) -> int:
    pid = process._child.process_id
    assert pid is not None
    return pid


@pytest.mark.parametrize(
    "source",
    [
        ENDLESS,
        "{{ (messages | length + 1) ** (2 ** 40) }}",
        NESTED + "{{ ns.x }}",
        NESTED + "{% set a = ns.x %}" + NESTED + "{{ a == ns.x }}",
        "{{ lipsum(10 ** 8) }}",
    ],
    ids=["loops", "power", "nested lists", "comparison", "lorem ipsum"],
)
def test_an_endless_template_ends_at_the_time_limit(
    source: str, start: Callable[..., TemplateProcess]
) -> None:
    process = start(source, 0.3)
    with pytest.raises(TemplateTimeout, match=r"^it takes longer than 0\.3 s$"):
        process.render(HELLO, add_generation_prompt=True)


@on_linux
@pytest.mark.parametrize(
    "expression",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ 'a' | center(10 ** 9) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ messages | tojson(indent=10 ** 10) }}",
        "{{ ([1] * 10 ** 10) | join }}",
        "{{ (messages[0].content * 10 ** 7).replace('e', messages[0].content * 10 ** 7) }}",
        "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_a_template_cannot_fill_memory(expression: str, start: Callable[..., TemplateProcess]) -> None:
    process = start("{% if messages[0].content == 'Hello' %}" + expression + "{% endif %}fine")
    with pytest.raises(TemplateFailure, match=r"MemoryError|OverflowError|it writes more than"):
        process.render(HELLO, add_generation_prompt=True)
    rendering = process.render([{"role": "user", "content": "Bye"}], add_generation_prompt=True)
    assert rendering.text == "fine"


@on_linux
def test_a_text_that_doubles_ends_at_a_limit(start: Callable[..., TemplateProcess]) -> None:
    process = start(GROWING + "{{ ns.x | length }}", 1)
    with pytest.raises(TemplateFailure, match=r"MemoryError|it takes longer"):
        process.render(HELLO, add_generation_prompt=True)


@pytest.mark.parametrize(
    "expression",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{{ messages[0].__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__.jinja2 }}",
        "{{ self.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_the_sandbox_gives_no_access_to_python(
    expression: str, start: Callable[..., TemplateProcess]
) -> None:
    with pytest.raises(TemplateFailure, match=r"SecurityError|UndefinedError|no loader|TypeError"):
        start(expression).render(HELLO, add_generation_prompt=True)


@pytest.mark.parametrize("attribute", ["__class__", "_tracer", "_plain", "__dict__"])
def test_a_content_has_no_private_attributes(attribute: str, start: Callable[..., TemplateProcess]) -> None:
    process = start("[{{ messages[0].content | attr('" + attribute + "') }}]")
    assert process.render(HELLO, add_generation_prompt=True).text == "[]"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for", "TemplateSyntaxError: unexpected 'end of template'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "RecursionError"),
        ("{{ x | unheard_of }}", "TemplateAssertionError: No filter named 'unheard_of'."),
    ],
)
def test_a_template_that_does_not_compile_is_a_failure(
    source: str, message: str, start: Callable[..., TemplateProcess]
) -> None:
    with pytest.raises(TemplateFailure, match=message):
        start(source)


def test_raise_exception_differs_from_a_failure(start: Callable[..., TemplateProcess]) -> None:
    process = start("{{ raise_exception('One question,\nplease') if messages[1] else messages.x.y }}")
    with pytest.raises(TemplateRejection, match=r"^One question,\nplease$"):
        process.render(HELLO * 2, add_generation_prompt=True)
    with pytest.raises(TemplateFailure, match="UndefinedError: 'list object' has no attribute 'x'"):
        process.render(HELLO, add_generation_prompt=True)


def test_a_killed_process_is_replaced(start: Callable[..., TemplateProcess]) -> None:
    process = start("{% if messages[0].content == 'Hello' %}" + ENDLESS + "{% endif %}fine", 1)
    other = [{"role": "user", "content": "Bye"}]
    with pytest.raises(TemplateTimeout):
        process.render(HELLO, add_generation_prompt=True)
    assert process.render(other, add_generation_prompt=True).text == "fine"
    os.kill(pid_of(process), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(process), os.WEXITED | os.WNOWAIT)
    assert process.render(other, add_generation_prompt=True).text == "fine"


def test_concurrent_renderings_do_not_mix(start: Callable[..., TemplateProcess]) -> None:
    process = start(CHATML)

    def render(number: int) -> bool:
        messages = [{"role": "user", "content": f"Question {number} \u2028\n" + "x" * (number % 700)}]
        text = process.render(messages, add_generation_prompt=True).text
        return text == f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(render, range(3000)))


@on_linux
def test_the_process_has_no_secrets_in_its_environment(
    start: Callable[..., TemplateProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    environment = Path(f"/proc/{pid_of(start(CHATML))}/environ").read_bytes()
    assert b"PYTHONPATH=" in environment
    assert b"hf_secret" not in environment


def test_close_ends_the_process(start: Callable[..., TemplateProcess]) -> None:
    process = start(CHATML)
    pid = pid_of(process)
    os.kill(pid, 0)
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert process.render(HELLO, add_generation_prompt=False).text == "<|im_start|>user\nHello<|im_end|>\n"


def test_sigterm_does_not_end_the_process(start: Callable[..., TemplateProcess]) -> None:
    process = start(CHATML)
    pid = pid_of(process)
    os.kill(pid, signal.SIGTERM)
    assert process.render(HELLO, add_generation_prompt=True).text
    assert pid_of(process) == pid


@on_linux
@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "killed"])
def test_the_process_ends_with_its_parent(ending: str) -> None:
    script = f"""
        import os, signal
        from app.chat.template.process import TemplateProcess
        process = TemplateProcess("", {{}}, time_limit=1)
        print(process._child.process_id, flush=True)
        {ending}
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.stderr == ""
    child = Path(f"/proc/{finished.stdout.strip()}")
    while child.exists() and "Z (zombie)" not in (child / "status").read_text():
        time.sleep(0.01)  # ended by the test's time limit
