"""A server's side of TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from pooldrain.errors import ConfigurationError


def server_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """What a server needs to speak TLS with this certificate; None without one.

    `keyfile` None: the key is in `certfile`, too. Raises ConfigurationError if they cannot be used.
    """
    if certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certfile, keyfile, password=_nobody_to_ask)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            f"--certfile {certfile}{'' if keyfile is None else f' --keyfile {keyfile}'}: {' '.join(reason.split())}; "
            "give a certificate and its key in PEM, without a passphrase"
        ) from None
    return context


def _nobody_to_ask() -> bytes:
    """The passphrase of a key: a service has no terminal to ask on."""
    return b""
