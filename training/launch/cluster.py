"""Checks that a cluster answers before Ray connects: Ray itself waits for minutes at a port without a cluster."""

import os

import grpc

from clara.errors import InputError

TIMEOUT_SECONDS = 10.0
_LOCAL = ("auto", "local")


def check_reachable(address: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Refuse an address at which no cluster answers.

    Args:
        address: of RAY_ADDRESS: `HOST:PORT`, `ray://HOST:PORT`, `auto` or `local`, of which Ray finds the latter two
            itself.
        timeout_seconds: to wait for an answer.

    Raises:
        InputError: no host and port; nobody listens there; or what listens is no Ray (a port that another program
            took).
    """
    if address in _LOCAL or os.environ.get("RAY_USE_TLS") == "1":  # with certificates only Ray knows how to greet
        return
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit() or "/" in target:
        raise InputError(
            f"RAY_ADDRESS is {address!r}; expected HOST:PORT of a cluster's head, as `ray start --head` prints it, "
            "or auto"
        )
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_seconds)
        except grpc.FutureTimeoutError as error:
            raise InputError(
                f"RAY_ADDRESS is {address!r}: no Ray cluster answers there within {timeout_seconds:g} s (it has "
                "ended, or another program holds "
                "the port); start one with `ray start --head` (another port with --port=N), correct RAY_ADDRESS, or "
                "unset it to train here"
            ) from error
