"""Tests reach this machine and no other."""

import socket
from pathlib import Path

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org", "10.0.0.1"])
def test_a_connection_to_another_machine_fails_the_test(host: str) -> None:
    with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="must not use the network"):
        client.connect((host, 80))


def test_loopback_and_unix_sockets_are_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
