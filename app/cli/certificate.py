"""The TLS certificate (SSL_CERTFILE, SSL_KEYFILE), which is renewed without a restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from app.config.settings import Settings, SettingsError


class Certificate:
    """A TLS context whose certificate can be read again.

    Attributes:
        context: Context of the listening sockets.
        paths: Files of the certificate and its key.
    """

    def __init__(self, cert: Path, key: Path | None) -> None:
        """Read the certificate.

        Raises:
            SettingsError: The files cannot be read or do not fit together.
        """
        self._cert = cert
        self._key = key
        self.paths = [cert] if key is None else [cert, key]
        self._current = self.context = self._read()
        # Called at the start of each handshake, with or without a server name.
        self.context.sni_callback = self._use_current

    def reload(self) -> None:
        """Use the current files for new connections. After an error, the previous certificate remains.

        Raises:
            SettingsError: The files cannot be read or do not fit together.
        """
        # A new context: the old one would keep a certificate of another algorithm beside the new one.
        self._current = self._read()

    def _use_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        variables = f"SSL_CERTFILE={self._cert}" + (f", SSL_KEYFILE={self._key}" if self._key else "")
        try:
            context.load_cert_chain(self._cert, self._key, _no_password)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise SettingsError(
                f"{variables}: cannot be used: {reason}",
                remedy="they should be PEM files of a certificate chain and its private key without password",
            ) from None
        return context


def _no_password() -> str:
    raise ValueError("the private key has a password")


def certificate_of(settings: Settings) -> Certificate | None:
    """The certificate of the settings; None without one.

    Raises:
        SettingsError: The files cannot be used, or SSL_CERTFILE is missing.
    """
    if settings.ssl_certfile is not None:
        return Certificate(settings.ssl_certfile, settings.ssl_keyfile)
    if settings.ssl_keyfile is not None:
        raise SettingsError(f"SSL_KEYFILE={settings.ssl_keyfile}: SSL_CERTFILE is missing")
    return None
