"""What every call of an OpenAI-compatible endpoint needs: a valid address, the key, waits that are asked for."""

import os
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from clara.errors import InputError

_MESSAGE_CHARACTERS = 300


def check_url(url: str, flag: str) -> None:
    """Refuse an address that is none, or that holds what must not be written down.

    Args:
        url: of the endpoint.
        flag: that gave it, for the message.

    Raises:
        InputError: no host, another scheme than http or https, or a user, password, query or fragment in it.
    """
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"{flag}: not the URL of an endpoint; expected one as http://localhost:8000/v1")
    if parts.scheme not in ("http", "https"):
        raise InputError(
            f"{flag}: {parts.scheme}:// is no scheme of an endpoint; expected http or https, as http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"{flag}: its URL holds a user, password or query, which would be written down; give a key by an "
            "environment variable (--key-variable, retrieval.dense_key_variable)"
        )


def refuse_password(uri: str) -> str:
    """A tracking URI, if it has no password: configurations, logs and pins keep it.

    Raises:
        InputError: the URI contains a password.
    """
    if urlsplit(uri).password is not None:
        raise InputError(
            "the URI of the tracking store holds a password, which would be written down; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, or PGPASSWORD for PostgreSQL"
        )
    return uri


def key_of(variable: str) -> str:
    """The key in an environment variable; empty: there is none."""
    return os.environ.get(variable, "").strip()


def cleaned(text: str, key: str) -> str:
    """The beginning of what an endpoint said, on one line, without the key, which some of them repeat."""
    line = " ".join(text.split())
    return (line.replace(key, "***") if key else line)[:_MESSAGE_CHARACTERS]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a response's headers ask to wait, as a number or a date; 0 if they do not say."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) / divisor
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError):
                continue
        if 0 < seconds < float("inf"):
            return seconds
    return 0.0
