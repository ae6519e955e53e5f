"""Sockets of the server's addresses."""

from __future__ import annotations

import socket

from app.config.addresses import split_address
from app.config.errors import UserError


class StartupError(UserError):
    """The server cannot start."""


def listen(variable: str, address: str) -> socket.socket:
    """Take an address; ``variable``: the setting that names it.

    Raises:
        StartupError: The address is in use or not one of this machine.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(
            f"{variable}={address}: cannot listen there: {error.strerror or error}",
            remedy=f"stop the process that uses it, or set {variable} to another address",
        ) from None
    return listener
