"""A guard that refuses connections to other machines, for the process that it is installed in."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest


def refuse_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sockets connect to this machine only: loopback addresses and Unix sockets.

    Datagram sockets may connect anywhere: that sends nothing, and libraries do it to learn the machine's own address.

    Raises:
        pytest.fail.Exception: inside the test that tries to connect elsewhere.
    """
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        internet = self.family in (socket.AF_INET, socket.AF_INET6) and self.type == socket.SOCK_STREAM
        if internet and _is_link_local(address[0]):  # where clients of clouds ask whether they run in one
            raise ConnectionRefusedError(f"{address[0]}: no such service on the machine of a test")
        if internet and not _is_local(address[0]):
            pytest.fail(f"connection to {address[0]}:{address[1]}: tests must not use the network")
        return connect(self, address)

    return guarded


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_link_local
    except ValueError:
        return False


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified
