"""Many requests, late and lost ones: the queue is bounded, a cancelled client frees its slot, shutdown is orderly."""

import asyncio
import contextlib
import json
import socket
import threading
from contextlib import aclosing

import httpx
import pytest
import uvicorn

from clara.config.serving import Serving
from clara.errors import InputError
from clara.serving import command
from clara.serving.engine import Engine
from clara.serving.events import Finished, Found, Piece, QueueFullError, Request, StoppedError
from clara.serving.metrics import Metrics
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import client_of, figure, server_of, wait_for

LONG = Request(("What does the market of Jorvik on the Wend sell?",), 2, 1500)
SHORT = Request(("Who is the mayor of Arlen?",), 2, 3)
FEW = {"question": "Who?", "max_tokens": 1}
BODY = {"question": LONG.questions[0], "passages": 2, "max_tokens": 1500, "stream": True}


async def finish(engine: Engine, request: Request) -> Finished:
    async with aclosing(engine.events(request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return event
    raise AssertionError("no answer")


def run(system: System, body: object, **settings: object) -> None:
    """Run a coroutine function of an engine."""
    engine = Engine(system, Serving.model_validate(settings), Metrics())
    engine.start()
    try:
        asyncio.run(body(engine))  # type: ignore[operator]
    finally:
        engine.stop()


def test_a_full_queue_refuses_and_a_cancelled_client_frees_its_slot(system: System) -> None:
    async def body(engine: Engine) -> None:
        expected = system.ask(SHORT.questions[0], passages=2, max_new_tokens=3).text
        async with aclosing(engine.events(LONG)) as running:
            assert isinstance(await anext(running), Found)
            waiting = asyncio.create_task(finish(engine, SHORT))
            await asyncio.sleep(0.05)
            with pytest.raises(QueueFullError):
                await finish(engine, SHORT)
            waiting.cancel()  # its place in the queue is free again
            await asyncio.gather(waiting, return_exceptions=True)
            waiting = asyncio.create_task(finish(engine, SHORT))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        assert (await waiting).answered.text == expected

    run(system, body, max_running=1, max_waiting=1)


def test_rows_join_a_running_batch(system: System) -> None:
    async def body(engine: Engine) -> None:
        async with aclosing(engine.events(LONG)) as running:
            assert isinstance(await anext(running), Found)
            assert isinstance(await anext(running), Piece)
            assert (await finish(engine, SHORT)).num_tokens == 3
            assert isinstance(await anext(running), Piece)  # it still runs

    run(system, body, max_running=2, max_waiting=0)


def test_a_request_has_its_time(system: System) -> None:
    async def body(engine: Engine) -> None:
        with pytest.raises(TimeoutError):
            await finish(engine, LONG)
        tries = 0
        while tries < 30:  # the row leaves between two steps, which a busy machine may take long for
            tries += 1
            with contextlib.suppress(TimeoutError):
                assert (await finish(engine, Request(("Who?",), 1, 1))).num_tokens == 1
                return
        raise AssertionError("the slot is not free")

    run(system, body, request_seconds=0.5, max_running=1)


def test_what_does_not_fit_the_language_model_is_refused(system: System) -> None:
    async def body(engine: Engine) -> None:
        with pytest.raises(InputError, match="the language model takes 2048 together"):
            await finish(engine, Request(("Who?",), 2, 2048))

    run(system, body)


def test_a_stopped_engine_ends_what_runs_and_takes_nothing(system: System) -> None:
    async def body(engine: Engine) -> None:
        running = asyncio.create_task(finish(engine, LONG))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(engine.stop)
        for late in (running, finish(engine, SHORT)):
            with pytest.raises(StoppedError):
                await late
        assert not engine.ready

    run(system, body)


# --- over HTTP ---


def refused(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").status_code == 0
    except httpx.TransportError:
        return True


def test_statuses_of_a_busy_and_of_a_slow_service(system: System) -> None:
    with client_of(system, max_running=1, max_waiting=0, request_seconds=1, max_answer_tokens=1500) as client:
        replies = []
        slow = threading.Thread(
            target=lambda: replies.append(client.post("/v1/answers", json={**BODY, "stream": False}))
        )
        slow.start()
        wait_for(lambda: figure(client, "clara_running") == 1)
        refused = client.post("/v1/answers", json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        slow.join()
        assert replies[0].status_code == 504
        assert "serving.request_seconds" in replies[0].json()["error"]["message"]
        wait_for(lambda: client.post("/v1/answers", json=FEW).status_code == 200)


def test_a_disconnect_in_a_stream_and_before_an_answer_frees_the_slot(system: System) -> None:
    with server_of(system, max_running=1, max_waiting=0, max_answer_tokens=1500) as (_, url):
        with httpx.stream("POST", f"{url}/v1/answers", json=BODY, timeout=60) as reply:
            assert next(reply.iter_lines()) == "event: passages"
        wait_for(lambda: httpx.post(f"{url}/v1/answers", json=FEW, timeout=60).status_code == 200)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/answers", json={**BODY, "stream": False}, timeout=0.5)
        wait_for(lambda: httpx.post(f"{url}/v1/answers", json=FEW, timeout=60).status_code == 200)


def test_a_slow_body_ends_with_408(system: System) -> None:
    with server_of(system, request_seconds=0.3) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(b"POST /v1/answers HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
            assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_within_its_body_sent_no_wrong_body(system: System) -> None:
    with server_of(system) as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(b"POST /v1/answers HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
        noted = 'clara_requests_total{path="/v1/answers",status="499"} 1.0'
        wait_for(lambda: noted in httpx.get(f"{url}/metrics").text)


def test_an_idle_connection_is_kept_longer_than_by_clients(
    evaluation_artefacts: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, **_: configs.append(server.config))
    world = evaluation_artefacts
    assert command.main([f"--checkpoint={world.checkpoint}", f"--memory={world.memory}", "--port=0"]) == 0
    assert configs[0].timeout_keep_alive > httpx.Limits().keepalive_expiry


def test_shutdown_waits_for_what_runs(system: System) -> None:
    body = {**BODY, "max_tokens": 60}
    expected = system.ask(body["question"], passages=2, max_new_tokens=60).text  # type: ignore[call-overload]
    with server_of(system) as (server, url):
        with httpx.stream("POST", f"{url}/v1/answers", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            assert next(lines) == "event: passages"
            server.should_exit = True
            rest = list(lines)
        last = rest.index("event: answer") + 1
        assert json.loads(rest[last].removeprefix("data: "))["text"] == expected
        wait_for(lambda: refused(url))
