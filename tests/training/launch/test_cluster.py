"""RAY_ADDRESS: dead clusters, ports that another program took, and what is no address."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from clara.errors import InputError
from training.launch.cluster import check_reachable


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_in_use_by_another_program_is_reported(taken_port: int, scheme: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"RAY_ADDRESS is '{scheme}127\.0\.0\.1:{taken_port}': no Ray cluster answers there within 0\.5 s",
    ):
        check_reachable(f"{scheme}127.0.0.1:{taken_port}", 0.5)


def test_a_cluster_that_has_ended_is_reported(taken_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InputError, match="start one with `ray start --head`"):
        check_reachable(f"127.0.0.1:{port}", 0.5)


@pytest.mark.parametrize("address", ["127.0.0.1", "head:", ":6379", "http://127.0.0.1:8265"])
def test_an_invalid_address_is_reported(address: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT of a cluster's head"):
        check_reachable(address, 0.5)


def test_what_answers_is_accepted() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check_reachable(f"127.0.0.1:{port}", 10.0)
    server.stop(None)
    check_reachable("auto", 0.5)


def test_a_run_is_refused_before_ray_is_asked(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.launch import cluster
    from training.launch import ray_train as launch

    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken_port}")
    monkeypatch.setattr(cluster.check_reachable, "__defaults__", (0.5,))
    with pytest.raises(InputError, match="another program holds the port"):
        launch.connect()
