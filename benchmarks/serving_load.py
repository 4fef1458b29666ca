"""What benchmarks/serving.py starts and asks: servers in separate processes, and clients that wait for answers."""

import contextlib
import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil


@dataclass(frozen=True)
class Timing:
    """Seconds from sending a question to the first piece of its answer, and to its end; the question and the answer."""

    first: float
    whole: float
    question: str = ""
    text: str = ""


Ask = Callable[[str], Timing]


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        port: of the loopback.
        process: its own, whose children belong to it.
        start_seconds: from its start to its first sign of being ready.
    """

    port: int
    process: psutil.Process
    start_seconds: float

    def processor_seconds(self) -> float:
        """Processor time that it has used so far, with its children."""
        every = [self.process, *self.process.children(recursive=True)]
        return sum(times.user + times.system for times in (each.cpu_times() for each in every))


@contextmanager
def running(command: Sequence[str], port: int, ready: str, log: Path, limit_seconds: float) -> Iterator[Server]:
    """A server, from the time that it is ready; it is ended after use.

    Args:
        command: listens at the port.
        port: of the loopback.
        ready: path that answers with 200 once it is.
        log: for what it prints.
        limit_seconds: longest wait; also the longest answer of MLflow's scoring server.

    Raises:
        RuntimeError: it ends, or is not ready in time.
    """
    began = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
    patient = {"MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT": str(int(limit_seconds))}  # one minute is less than some need
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | {"PATH": path} | patient)
    own = psutil.Process(process.pid)
    try:
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}").read()
                break
            if process.poll() is not None or time.monotonic() > began + limit_seconds:
                raise RuntimeError(f"{command}: not ready: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Server(port, own, time.monotonic() - began)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            for each in [*own.children(recursive=True), own]:
                each.terminate()
        process.wait()


def asks_stream(port: int, passages: int, tokens: int) -> Ask:
    """A client of POST /v1/answers, streamed: its first token is the first `piece`, or the end of an empty one."""

    def ask(question: str) -> Timing:
        body = {"question": question, "passages": passages, "max_tokens": tokens, "stream": True}
        began, first, text = time.monotonic(), 0.0, ""
        with _posted(port, "/v1/answers", body) as reply:
            event = ""
            for line in reply:
                if line.startswith(b"event: "):
                    event = line[len(b"event: ") :].strip().decode()
                    if event in ("piece", "answer") and not first:
                        first = time.monotonic() - began
                    if event == "error":
                        raise RuntimeError(reply.read().decode())
                elif event == "answer" and line.startswith(b"data: "):
                    text = json.loads(line[len(b"data: ") :])["text"]
        if event != "answer":
            raise RuntimeError(f"the stream ended with {event!r}")
        return Timing(first, time.monotonic() - began, question, text)

    return ask


def asks_scoring_server(port: int, passages: int, tokens: int) -> Ask:
    """A client of MLflow's scoring server, which does not stream: the first token comes with the last."""

    def ask(question: str) -> Timing:
        body = {"inputs": [question], "params": {"num_selected": passages, "max_new_tokens": tokens}}
        began = time.monotonic()
        with _posted(port, "/invocations", body) as reply:
            text = json.loads(reply.read())["predictions"][0]["answer"]
        whole = time.monotonic() - began
        return Timing(whole, whole, question, text)

    return ask


@contextmanager
def _posted(port: int, path: str, body: Any) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != http.client.OK:
            raise RuntimeError(f"{path}: status {reply.status}: {reply.read(500)!r}")
        yield reply
    finally:
        connection.close()


def load(ask: Ask, questions: Sequence[str], num_clients: int) -> tuple[list[Timing], float]:
    """Ask every question once: each client sends its next one when it has an answer.

    Returns:
        The timings, and seconds from the first question to the last answer.

    Raises:
        Exception: of the first client that failed.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for question in questions:
        waiting.put(question)
    timings: list[Timing] = []
    faults: list[BaseException] = []

    def client() -> None:
        with contextlib.suppress(queue.Empty):
            while not faults:
                question = waiting.get_nowait()
                try:
                    timings.append(ask(question))
                except BaseException as fault:
                    faults.append(fault)

    clients = [threading.Thread(target=client) for _ in range(num_clients)]
    began = time.monotonic()
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if faults:
        raise faults[0]
    return timings, time.monotonic() - began


def differing(timings: Sequence[Timing], expected: Mapping[str, str]) -> dict[str, int]:
    """How many answers were compared with those one by one, and how many of them differ."""
    known = [timing for timing in timings if timing.question in expected]
    return {"compared": len(known), "differ": sum(timing.text != expected[timing.question] for timing in known)}


def figures(timings: Sequence[Timing], seconds: float, processor_seconds: float) -> dict[str, float]:
    """Of one point: answers a second, and quantiles of both waits in seconds."""
    first, whole = [t.first for t in timings], [t.whole for t in timings]
    return {
        "answers": float(len(timings)),
        "answers_per_second": len(timings) / seconds,
        "processor_seconds_per_answer": processor_seconds / len(timings),
        "first_p50": float(np.quantile(first, 0.5)),
        "first_p99": float(np.quantile(first, 0.99)),
        "whole_p50": float(np.quantile(whole, 0.5)),
        "whole_p99": float(np.quantile(whole, 0.99)),
    }
