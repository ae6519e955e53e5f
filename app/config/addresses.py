"""Types of settings: lists, addresses, host names, origins of web pages."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode


def split_address(address: str) -> tuple[str, int]:
    """Split ``host:port`` (IPv6: ``[::1]:3030``) into host and port.

    Raises:
        ValueError: Host or port is missing, or the port is not in 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("should be host:port, such as 127.0.0.1:3030 or [::1]:3030")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_check_address)]


def _split(text: Any) -> Any:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _check_host(host: str) -> str:
    if host != "*" and not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*|[0-9a-fA-F:]+", host):
        raise ValueError("should be host names without scheme and port, separated by commas")
    return host.lower()


def _check_origin(origin: str) -> str:
    origin = origin.lower()  # as browsers send it
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
        raise ValueError("should be origins such as https://chat.example.org, without a path")
    return origin


Entries = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_check_host)], ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(_split)
]
