"""Requests of web pages of other sites, over a real socket. An accepted request is answered 503: loading."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from app.api.http.foreign import AllowedHosts
from app.config.settings import load
from tests.api.unloaded_app import serving

SITE = "https://chat.example.org"
QUESTION = {"query": "x"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(load(env_file=None)) as url:
        yield url


@pytest.fixture(scope="module")
def shared_url() -> Iterator[str]:
    """A server that the pages of SITE may use, with a key."""
    with serving(load(env_file=None, cors_allow_origin=(SITE,), api_key="key")) as url:
        yield url


def ask(url: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{url}/token_stream", json=QUESTION, headers=named)


@pytest.mark.parametrize("path", ["/token_stream", "/v1/chat/completions", "/generate", "/health", "/"])
def test_a_foreign_host_is_rejected_in_the_format_of_the_dialect(url: str, path: str) -> None:
    """DNS rebinding: a foreign name leads to this server."""
    for method in ("GET", "POST"):
        response = httpx.request(method, url + path, headers={"Host": "evil.example:3030"}, json=QUESTION)
        assert response.status_code == 403
        error = response.json()["error"]
        assert "evil.example:3030" in (error["message"] if path.startswith("/v1") else error)


@pytest.mark.parametrize(
    ("bound", "host", "is_allowed"),
    [
        ("127.0.0.1", "localhost:3030", True),
        ("127.0.0.1", "LOCALHOST.", True),
        ("127.0.0.1", "app.localhost", True),
        ("127.0.0.1", "127.8.0.1:80", True),
        ("127.0.0.1", "[::1]:3030", True),
        ("127.0.0.1", socket.gethostname(), True),
        ("127.0.0.1", "10.2.3.4:3030", False),
        ("127.0.0.1", "0.0.0.0:3030", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "evil-localhost", False),
        ("127.0.0.1", "", False),
        ("10.2.3.4", "10.2.3.4:3030", True),
        ("10.2.3.4", "10.2.3.5:3030", False),
        ("Box.lan", "box.lan:3030", True),
        ("0.0.0.0", "10.2.3.4:3030", True),  # a health check of Kubernetes has the address of the pod
        ("::", "[fe80::1]:3030", True),
        ("0.0.0.0", "tokenstream:3030", True),  # the name of a service in Docker Compose
        ("0.0.0.0", "evil.example", False),
    ],
)
def test_hosts_allowed_by_default(bound: str, host: str, is_allowed: bool) -> None:
    assert (host in AllowedHosts(bound, ())) is is_allowed


@pytest.mark.parametrize(
    ("allowed", "host", "is_allowed"),
    [
        (("chat.example.org",), "chat.example.org:443", True),
        (("chat.example.org",), "localhost", True),
        (("chat.example.org",), "a.chat.example.org", False),
        (("*.example.org",), "chat.example.org", True),
        (("*.example.org",), "example.org.evil.example", False),
        (("*",), "evil.example", True),
    ],
)
def test_hosts_of_the_setting(allowed: tuple[str, ...], host: str, is_allowed: bool) -> None:
    assert (host in AllowedHosts("127.0.0.1", allowed)) is is_allowed


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},  # not a URL
        {"Origin": "http://127.0.0.1:1"},  # another port is another origin
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_request_of_another_site_is_rejected(url: str, headers: dict[str, str]) -> None:
    response = ask(url, **headers)
    assert (response.status_code, response.json()["error_type"]) == (403, "foreign_origin")
    assert "CORS_ALLOW_ORIGIN" in response.json()["error"]


def test_requests_of_the_own_page_and_of_programs_are_accepted(url: str) -> None:
    for headers in (
        {},
        {"Origin": url},
        {"Origin": url, "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        # A proxy with TLS sends its own Host.
        {"Origin": "https://proxy.example", "Sec_Fetch_Site": "same-origin"},
    ):
        assert ask(url, **headers).status_code == 503, headers


def test_a_link_on_another_site_leads_to_the_page_but_no_script_does(url: str) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(url, headers=link).status_code == 200
    assert httpx.get(f"{url}/contexts", headers=link | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    form = httpx.post(f"{url}/token_stream", headers=link, data={"query": "x"})
    assert form.status_code == 403


def test_a_body_without_content_type_is_415(url: str) -> None:
    """Browsers send such a body to any site without a preflight."""
    response = httpx.post(f"{url}/token_stream", content=b'{"query": "x"}')
    assert (response.status_code, response.json()["error_type"]) == (415, "unsupported_media_type")
    assert "application/json" in response.json()["error"]


def test_an_allowed_site_gets_a_preflight_without_the_key_and_reads_errors(shared_url: str) -> None:
    preflight = httpx.options(
        f"{shared_url}/v1/chat/completions",
        headers={
            "Origin": SITE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == SITE
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    answers = [ask(shared_url, Origin=SITE), ask(shared_url, Origin=SITE, Authorization="Bearer key")]
    assert [answer.status_code for answer in answers] == [401, 503]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {SITE}
    readable = {"X-Sources", "X-Sources-Waiting", "X-Prefix-Key", "Retry-After", "X-Request-ID"}
    assert set(answers[1].headers["access-control-expose-headers"].split(", ")) == readable


def test_other_sites_stay_foreign_to_a_server_with_an_allowed_site(shared_url: str) -> None:
    other = "https://chat.example.org.evil.example"
    response = ask(shared_url, Origin=other, Authorization="Bearer key")
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    preflight = {"Origin": other, "Access-Control-Request-Method": "POST"}
    assert httpx.options(shared_url, headers=preflight).status_code == 400
