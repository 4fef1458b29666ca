"""Checks that a worker pool can start workers.

Runs before a job is submitted: a pool whose processes cannot start answers as if they did, and the job would hang.
"""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)

from clara.errors import InputError

START_SECONDS = 120.0


class _Runner(
    beam_fn_api_pb2_grpc.BeamFnControlServicer,
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
):
    """A minimal runner that a worker can connect to."""

    def __init__(self) -> None:
        self.reported, self.over = threading.Event(), threading.Event()

    def Control(self, responses: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Note that a worker has connected; it gets no work."""
        self.reported.set()
        self.over.wait()
        yield from ()

    def Logging(self, messages: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        """Ignore the log of a worker."""
        self.over.wait()
        yield from ()

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """A job without options or packages."""
        return beam_provision_api_pb2.GetProvisionInfoResponse()


def probe_pool(address: str, seconds: float = START_SECONDS) -> None:
    """Have a pool on this machine start a worker, and wait until it reports.

    Args:
        address: HOST:PORT of the pool.
        seconds: how long a worker may take to start.

    Raises:
        InputError: the pool refuses, or its worker does not report.
    """
    runner = _Runner()
    server = grpc.server(ThreadPoolExecutor(4))
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(runner, server)
    beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(runner, server)
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(runner, server)
    here = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{server.add_insecure_port('localhost:0')}")
    server.start()
    worker = f"probe-{uuid.uuid4().hex[:8]}"
    remedy = (
        "start the pool with python -m pipelines.worker_pool, "
        "or put the environment that has apache-beam first on the PATH of the other one"
    )
    try:
        with grpc.insecure_channel(address) as channel:
            pool = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            request = beam_fn_api_pb2.StartWorkerRequest(
                worker_id=worker,
                control_endpoint=here,
                logging_endpoint=here,
                artifact_endpoint=here,
                provision_endpoint=here,
            )
            said = pool.StartWorker(request, timeout=seconds).error
            reported = not said and runner.reported.wait(seconds)
            pool.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=worker), timeout=seconds)
    except grpc.RpcError as error:
        raise InputError(
            f"--environment_config {address}: what answers there is no worker pool ({error.code().name}); {remedy}"
        ) from error
    finally:
        runner.over.set()
        server.stop(0)
    if not reported:
        why = said.strip().splitlines()[-1] if said else f"no worker has reported after {seconds:.0f} s"
        raise InputError(
            f"--environment_config {address}: the pool answers, but its workers do not start ({why}); {remedy}"
        )
