"""Hot swap: no request fails, an answer is of one system, what is broken changes nothing, and the old one is let go."""

import dataclasses
import gc
import json
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import clara
from clara.config.serving import Serving
from clara.errors import InputError
from clara.index.build import build_index
from clara.memory.store import MemoryStore
from clara.opening import as_it_is
from clara.serving.app import make_app
from clara.serving.command import parser
from clara.serving.engine import Engine
from clara.serving.follow import Follower
from clara.serving.newest import Newest
from clara.serving.sources import Source, Sources
from clara.storage.manifest import manifest_hash, read_manifest, write_manifest
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import figure, wait_for

ROOT = Path(__file__).parents[3]
QUESTIONS = ["Who is the mayor of Arlen on the Tamo?", "What does the market of Jorvik sell?", "When was it built?"]
NEVER = 3600.0


@dataclasses.dataclass
class Served:
    """A service under test, its engine, and its follower, which looks when the test says so."""

    client: TestClient
    engine: Engine
    follower: Follower
    finds: Callable[[], Source]


def source(identity: str, opens: Callable[[], System], **settings: Any) -> Source:
    return Source(identity, f"system {identity}", opens, Serving(**settings))


@contextmanager
def served(system: System, **settings: Any) -> Iterator[Served]:
    parts: dict[str, Any] = {}

    def follow(engine: Engine, metrics: Any) -> Follower:
        first = source("first", lambda: system)
        parts["finds"] = lambda: first
        parts["engine"] = engine
        parts["follower"] = Follower(engine, lambda: parts["finds"](), first, metrics, NEVER)
        return parts["follower"]

    with TestClient(make_app(system, Serving(**settings), follow=follow), raise_server_exceptions=False) as client:
        yield Served(client, parts["engine"], parts["follower"], parts["finds"])


@pytest.fixture(scope="module")
def challenger(evaluation_artefacts: World) -> System:
    """Another generator over the same MEMORY: other answers."""
    world = evaluation_artefacts
    return clara.open(world.trained, world.memory, world.index)


def look_for(service: Served, found: Callable[[], Source]) -> dict[str, Any]:
    """What /health/ready says after a look that finds this."""
    service.follower._find = found
    service.follower.look()
    reply = service.client.get("/health/ready")
    assert reply.status_code == 200
    state: dict[str, Any] = reply.json()["follow"]
    return state


def test_answers_that_run_are_ended_by_their_system_and_the_next_are_of_the_new_one(
    system: System, challenger: System
) -> None:
    expected = [system.ask(q, max_new_tokens=200).text for q in QUESTIONS]
    newer = [challenger.ask(q, passages=2, max_new_tokens=9).text for q in QUESTIONS]
    assert newer != [system.ask(q, passages=2, max_new_tokens=9).text for q in QUESTIONS]
    with served(system) as service, ThreadPoolExecutor(6) as pool:
        # Once all three run, the old system's steps wait while the new one takes over.
        goes_on, step = Event(), service.engine._batch.step

        def held_back() -> None:
            goes_on.wait(600 if len(service.engine._running) == len(QUESTIONS) else 0.05)
            step()

        service.engine._batch.step = held_back  # type: ignore[method-assign]
        running = [
            pool.submit(service.client.post, "/v1/answers", json={"question": q, "max_tokens": 200}) for q in QUESTIONS
        ]
        wait_for(lambda: len(service.engine._running) == len(QUESTIONS), 600)
        state = look_for(service, lambda: source("second", lambda: challenger, num_selected=2, max_new_tokens=9))
        assert (state["serving"], state["error"]) == ("system second", "")
        bodies = [{"question": q, "passages": 2, "max_tokens": 9} for q in QUESTIONS]
        waiting = [pool.submit(service.client.post, "/v1/answers", json=body) for body in bodies]
        goes_on.set()
        assert [(r.status_code, r.json()["text"]) for r in (job.result() for job in running)] == [
            (200, text) for text in expected
        ]
        assert [job.result().json()["text"] for job in waiting] == newer
        reply = service.client.post("/v1/answers", json={"question": QUESTIONS[0]}).json()
        assert (reply["text"], len(reply["passages"])) == (newer[0], 2)  # by the new system's defaults
        assert service.engine.system is challenger
        assert (figure(service.client, "clara_swaps_total"), figure(service.client, "clara_swap_failures_total")) == (
            1,
            0,
        )
        # The same again is no news.
        look_for(service, lambda: source("second", lambda: 1 / 0))  # type: ignore[arg-type,return-value]
        assert figure(service.client, "clara_swaps_total") == 1


@pytest.mark.slow
def test_under_load_no_request_fails_while_systems_take_turns(system: System, challenger: System) -> None:
    asked = [{"question": q, "passages": 2, "max_tokens": 9} for q in QUESTIONS]
    expected = [{s.ask(q, passages=2, max_new_tokens=9).text for s in (system, challenger)} for q in QUESTIONS]
    numbers = [n % len(asked) for n in range(400)]
    with served(system, max_running=4) as service, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(service.client.post, "/v1/answers", json=asked[n]) for n in numbers]
        swaps = 0
        while not all(job.done() for job in jobs):
            opened, swaps = (challenger, system)[swaps % 2], swaps + 1
            # Another thread than the engine's may not ask a system that answers: these are handed over unasked.
            service.engine.swap(opened, Serving(max_running=4))
            wait_for(lambda opened=opened: service.engine.system is opened, 600)
        replies = [job.result() for job in jobs]
        assert {reply.status_code for reply in replies} == {200}
        assert all(reply.json()["text"] in expected[n] for n, reply in zip(numbers, replies, strict=True))
        assert swaps > 10


def test_what_cannot_be_found_opened_or_asked_leaves_the_old_system(
    system: System, challenger: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = system.ask(QUESTIONS[0], max_new_tokens=5).text

    def gone() -> System:
        raise InputError("memory: no manifest.json")

    def refuses() -> Source:
        raise InputError("the store does not answer")

    opened = []

    def broken() -> System:
        opened.append(1)
        return clara.system.System(None)  # type: ignore[arg-type,attr-defined]

    with served(system) as service:
        for find, error in (
            (lambda: source("second", gone), "memory: no manifest.json"),
            (refuses, "the store does not answer"),
            (lambda: source("third", broken), "a fault of the service; its log has more"),
        ):
            state = look_for(service, find)
            assert (state["serving"], state["error"]) == ("system first", error)
            assert figure(service.client, "clara_outdated") == 1
            asked = {"question": QUESTIONS[0], "max_tokens": 5}
            assert service.client.post("/v1/answers", json=asked).json()["text"] == expected
        assert figure(service.client, "clara_swap_failures_total") == 3
        # What failed is not tried again at once; what works takes over, and so does the way back.
        assert look_for(service, lambda: source("third", broken))["error"] != ""
        assert opened == [1]
        assert look_for(service, service.finds)["error"] == ""
        assert figure(service.client, "clara_outdated") == 0
        assert look_for(service, lambda: source("fourth", lambda: challenger))["serving"] == "system fourth"
        assert look_for(service, service.finds)["serving"] == "system first"
        wait_for(lambda: service.engine.system is system)


def test_the_old_system_is_let_go(evaluation_artefacts: World) -> None:
    world = evaluation_artefacts

    def opens() -> System:
        return clara.open(world.checkpoint, world.memory, world.index)

    parts: dict[str, Any] = {}

    def follow(engine: Engine, metrics: Any) -> Follower:
        parts["follower"] = Follower(engine, lambda: source("second", opens), source("first", opens), metrics, 0.05)
        return parts["follower"]

    app = make_app(opens(), Serving(), follow=follow)
    with TestClient(app) as client:
        engine = parts["follower"]._engine
        old = weakref.ref(engine.system), weakref.ref(engine.system.retriever.model)
        asked = {"question": QUESTIONS[0], "max_tokens": 3}
        assert client.post("/v1/answers", json=asked).status_code == 200
        wait_for(lambda: client.get("/health/ready").json()["follow"]["serving"] == "system second", 600)
        assert client.post("/v1/answers", json=asked).status_code == 200

        def freed() -> bool:
            gc.collect()
            return old[0]() is None and old[1]() is None

        wait_for(freed, 600)


# --- newer versions of MEMORY and INDEX ---


def manifest(folder: Path, kind: str, parent: str = "", fingerprint: str = "a" * 64, **more: Any) -> str:
    folder.mkdir()
    counts = {folder.name: 1}
    write_manifest(
        folder, kind=kind, files=[], recipe={}, counts=counts, fingerprint=fingerprint, parent=parent, **more
    )
    return manifest_hash(folder)


def test_newer_versions_are_found_by_their_parents(tmp_path: Path) -> None:
    first = manifest(tmp_path / "memory", "MEMORY", tombstones=[])
    manifest(tmp_path / "index", "INDEX", memory=first)
    both = Newest(str(tmp_path / "memory"), str(tmp_path / "index"))
    alone = Newest(str(tmp_path / "memory"))
    assert both.look() == (str(tmp_path / "memory"), str(tmp_path / "index"))
    second = manifest(tmp_path / "memory-2", "MEMORY", parent=first, tombstones=[2])
    manifest(tmp_path / "refreshed", "MEMORY", parent=second, fingerprint="b" * 64, tombstones=[])
    manifest(tmp_path / "other", "MEMORY", tombstones=[7])
    (tmp_path / "unfinished").mkdir()
    assert both.look() == (str(tmp_path / "memory"), str(tmp_path / "index"))  # its INDEX is not built yet
    assert alone.look() == (str(tmp_path / "memory-2"), "")
    manifest(tmp_path / "index-2", "INDEX", memory=second)
    assert both.look() == (str(tmp_path / "memory-2"), str(tmp_path / "index-2"))
    # From a version that was deleted meanwhile to one behind two others.
    shutil.rmtree(tmp_path / "memory-2")
    third = manifest(tmp_path / "memory-3", "MEMORY", parent=second, tombstones=[3])
    fourth = manifest(tmp_path / "memory-4", "MEMORY", parent=third, tombstones=[4])
    manifest(tmp_path / "index-4", "INDEX", memory=fourth)
    assert both.look() == (str(tmp_path / "memory-4"), str(tmp_path / "index-4"))
    assert alone.look() == (str(tmp_path / "memory-4"), "")


def without(memory: Path, row: int, newer: Path) -> Path:
    """A newer version of a MEMORY without one row, as `build_memory --update` leaves it."""
    shutil.copytree(memory, newer)
    (newer / "manifest.json").unlink()
    old = {k: v for k, v in read_manifest(memory).items() if k not in ("format_version", "kind", "made_by", "parent")}
    changed = old | {"tombstones": [row]}
    write_manifest(newer, kind="MEMORY", recipe={"made_by": "tests"}, parent=manifest_hash(memory), **changed)
    return newer


def test_a_document_that_is_deleted_while_serving_is_no_longer_found(
    evaluation_artefacts: World, tmp_path: Path
) -> None:
    world, memory, index = evaluation_artefacts, tmp_path / "memory", tmp_path / "index"
    shutil.copytree(world.memory, memory)
    shutil.copytree(world.index, index)
    words = [f"--checkpoint={world.checkpoint}", f"--memory={memory}", f"--index={index}", "--follow"]
    sources = Sources(lambda: (parser().parse_args(words), words), as_it_is, pinned=False)
    first = sources.find()
    with served(first.open()) as service:
        service.follower._served = first
        best = service.client.post("/v1/search", json={"questions": QUESTIONS[:1], "k": 1}).json()["results"][0][0]
        assert look_for(service, sources.find)["serving"] == first.name
        newer = without(memory, int(best["row_id"]), tmp_path / "memory-2")
        build_index(newer, tmp_path / "index-2", "Flat")
        assert look_for(service, sources.find)["serving"] == f"{world.checkpoint}, {newer}, {tmp_path / 'index-2'}"
        found = service.client.post("/v1/search", json={"questions": QUESTIONS[:1], "k": 79}).json()["results"][0]
        assert best["row_id"] not in {passage["row_id"] for passage in found}
        assert service.client.get("/health/ready").json()["rows"] == 79 == len(MemoryStore.open(newer))


@pytest.mark.slow
def test_a_process_takes_a_newer_memory_while_it_serves(evaluation_artefacts: World, tmp_path: Path) -> None:
    world, memory = evaluation_artefacts, tmp_path / "memory"
    shutil.copytree(world.memory, memory)
    words = [f"--checkpoint={world.checkpoint}", f"--memory={memory}", "--port=0", "--follow", "--follow-seconds=0.2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "clara.serving", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        url, line = "", {"message": ""}
        while not url or "startup complete" not in line["message"]:
            line = json.loads(process.stderr.readline())
            url = line.get("url", url)
        assert httpx.get(f"{url}/health/ready").json()["rows"] == 80
        row = int(
            httpx.post(f"{url}/v1/search", json={"questions": QUESTIONS[:1], "k": 1}).json()["results"][0][0]["row_id"]
        )
        newer = without(memory, row, tmp_path / "memory-2")
        shutil.rmtree(memory)  # what is served stays mapped
        wait_for(lambda: httpx.get(f"{url}/health/ready").json()["rows"] == 79, 120)
        state = httpx.get(f"{url}/health/ready").json()["follow"]
        assert (state["serving"], state["error"]) == (f"{world.checkpoint}, {newer}", "")
        body = {"question": QUESTIONS[0], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/answers", json=body, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
