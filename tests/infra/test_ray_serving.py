"""The service under Ray Serve: two replicas answer as Python does, and the death of one under load loses nothing."""

import itertools
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

import clara
from infra.ray import serve_config
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import ROOT, events_of, wait_for
from tests.helpers.ports import free_ports
from tests.helpers.ray_cluster import BIN, Cluster, below, kill

NUM_REQUESTS, NUM_CLIENTS, TOKENS, PASSAGES, TRIES = 200, 16, 24, 2, 60
QUESTIONS = [f"What does the market of town {n} on the Wend sell?" for n in range(5)]
SLOW_SECONDS = 1800


def serve_file(world: World, port: int, folder: Path) -> Path:
    """The shipped file for the tests' artefacts and this machine."""
    content = yaml.safe_load((Path(serve_config.__file__).parent / "serve.yaml").read_text(encoding="utf-8"))
    content["http_options"] |= {"host": "127.0.0.1", "port": port}
    application = content["applications"][0]
    application["args"] |= {"checkpoint": str(world.checkpoint), "memory": str(world.memory), "index": str(world.index)}
    del application["args"]["backbone"]
    service = application["deployments"][0]
    service["autoscaling_config"]["max_replicas"] = 2
    service |= {"ray_actor_options": {"num_cpus": 0.5}, "health_check_timeout_s": 300}
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    assert serve_config.check(file) == ["clara: 2 to 2 replicas, 72 requests in each"]
    return file


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one node, whose processes have a key for the service, and time on a busy machine."""
    patient = {f"RAY_SERVE_PROXY_{kind}_CHECK_TIMEOUT_S": "300" for kind in ("READY", "HEALTH")}
    patient["RAY_worker_register_timeout_seconds"] = "600"
    started = Cluster(tmp_path, 2, {"CLARA_API_KEY": "secret", "OMP_NUM_THREADS": "1", **patient})
    yield started
    started.close()


@contextmanager
def served(cluster: Cluster, world: World, folder: Path) -> Iterator[str]:
    """The URL of the service, while `serve run` runs."""
    port = free_ports(1)[0]
    command, log = [str(BIN / "serve"), "run", str(serve_file(world, port, folder))], folder / "log.txt"
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + SLOW_SECONDS

    def started() -> subprocess.Popen[bytes]:
        with open(log, "w") as said:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT)

    process = started()
    try:
        while not ready(url):
            assert time.monotonic() < end, log.read_text()
            if process.poll() is not None:  # it gives the proxy a minute to start, which a busy machine exceeds
                process = started()
            time.sleep(1)
        yield url
    finally:
        process.kill()
        process.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def replicas(cluster: Cluster) -> list[psutil.Process]:
    return below(cluster.head, "ray::ServeReplica:clara:Service")


class Clients:
    """Clients that send a request again until it is answered, as `docs/serving.md` says."""

    def __init__(self, url: str, world: World) -> None:
        system = clara.open(world.checkpoint, world.memory, world.index)
        self.texts = [a.text for a in system.ask(QUESTIONS, passages=PASSAGES, max_new_tokens=TOKENS)]
        self.rows = [[str(p.row_id) for p in found] for found in system.search(QUESTIONS, k=PASSAGES)]
        self.http = httpx.Client(base_url=url, timeout=300, headers={"Authorization": "Bearer secret"})
        self.again: Counter[str] = Counter()
        self.answered = itertools.count(1)

    def ask(self, number: int) -> int:
        """One request; returns how many have been answered."""
        kind, which = number % 3, number // 3 % len(QUESTIONS)
        for _ in range(TRIES):
            found, reason = self._once(kind, which)
            if not reason:
                assert found == (self.rows[which] if kind == 0 else self.texts[which])
                return next(self.answered)
            self.again[reason] += 1
            time.sleep(1)
        raise AssertionError(f"request {number} has no answer: {self.again}")

    def _once(self, kind: int, which: int) -> tuple[Any, str]:
        """What was found, or why there is nothing."""
        path, body = "/v1/search", {"questions": [QUESTIONS[which]], "k": PASSAGES}
        if kind:
            path, body = "/v1/answers", {"question": QUESTIONS[which], "passages": PASSAGES, "max_tokens": TOKENS}
        try:
            reply = self.http.post(path, json=body | ({"stream": True} if kind == 2 else {}))
        except httpx.TransportError as error:
            return None, type(error).__name__
        if reply.status_code == 429 or reply.status_code >= 500:
            return None, str(reply.status_code)
        assert reply.status_code == 200, reply.text
        if kind == 2:
            name, last = events_of(reply.text)[-1]
            return (last["text"], "") if name == "answer" else (None, f"stream ends with {name}")
        content = json.loads(reply.text)
        return ([p["row_id"] for p in content["results"][0]] if kind == 0 else content["text"]), ""


@pytest.mark.release
def test_a_replica_that_dies_under_load_loses_nothing(
    cluster: Cluster, evaluation_artefacts: World, tmp_path: Path
) -> None:
    with served(cluster, evaluation_artefacts, tmp_path) as url:
        wait_for(lambda: len(replicas(cluster)) == 2, SLOW_SECONDS)
        clients = Clients(url, evaluation_artefacts)
        without_key = httpx.post(f"{url}/v1/search", json={"questions": ["Who?"]}, timeout=300)
        assert without_key.status_code == 401
        streamed = {"question": QUESTIONS[0], "passages": PASSAGES, "max_tokens": 200, "stream": True}
        with clients.http.stream("POST", "/v1/answers", json=streamed) as reply:
            assert len(list(reply.iter_raw())) > 3  # as it is generated
        before = replicas(cluster)
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            jobs = [pool.submit(clients.ask, number) for number in range(NUM_REQUESTS)]
            wait_for(lambda: sum(job.done() for job in jobs) > NUM_REQUESTS // 4, SLOW_SECONDS)
            kill(before[:1])
            answered = [job.result() for job in jobs]
        print(dict(clients.again))
        assert sorted(answered) == list(range(1, NUM_REQUESTS + 1))
        wait_for(lambda: len(set(replicas(cluster)) - set(before[:1])) == 2, SLOW_SECONDS)
        assert clients.ask(0) == NUM_REQUESTS + 1
