"""Ten thousand requests to two services, one of which is killed: each has an answer or a documented refusal.

As many are sent at once as one service takes, and more: the other one's queue is full again and again.
`CLARA_RELEASE_RESULTS=infra/results/release pytest -m release tests/clara/serving/test_many_requests.py` keeps the
figures.
"""

import asyncio
import json
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.environment import environment
from clara.config.serving import Serving
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import events_of, process_of

NUM_REQUESTS = 10_000
LIMITS = Serving()
# Eight more than are taken, so that the queue is full again and again.
NUM_CLIENTS = LIMITS.max_running + LIMITS.max_waiting + 8
MAX_GROWTH_BYTES = 16 * 2**20
QUESTIONS = [f"What does the market of town {n} on the Wend sell?" for n in range(10)]
TOKENS, PASSAGES = 3, 2
KINDS = ["search", "search", "answer", "stream", "search", "chat", "chat stream", "search", "answer", "gone"]


class Load:
    """What clients saw: counts by kind and status, and what was neither an answer nor a documented refusal."""

    def __init__(self, urls: Sequence[str], system: System) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.services = [httpx.AsyncClient(base_url=url, timeout=900, limits=limits) for url in urls]
        self.resent = 0  # whose service ended before it answered
        self.texts = [s.text for s in system.ask(QUESTIONS, passages=PASSAGES, max_new_tokens=TOKENS)]
        self.rows = [[str(p.row_id) for p in found] for found in system.search(QUESTIONS, k=PASSAGES)]
        self.seen: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.seconds = 1.0  # that the last answer took

    async def ask(self, number: int) -> None:
        """One request; where its service ends before it answers, it is sent to another one, as a balancer would."""
        while True:
            http = self.services[number % len(self.services)]
            try:
                await self._ask(http, number)
                return
            except httpx.TransportError:
                if self.services == [http]:
                    raise
                self.resent += 1
                self.services = [other for other in self.services if other is not http]

    async def _ask(self, http: httpx.AsyncClient, number: int) -> None:
        """One request to a service, and a look at its reply."""
        kind, which = KINDS[number % len(KINDS)], number // len(KINDS) % len(QUESTIONS)
        if kind == "gone":
            await self._leave(http, which, number % 20 < 10)
            return
        path, body = asked(kind, which)
        began = time.monotonic()
        reply = await http.post(path, json=body)
        self.seen[kind, reply.status_code] += 1
        if reply.status_code == 429:
            if reply.headers.get("retry-after") != "1" or reply.json()["error"]["code"] != "queue_full":
                self.wrong.append(f"{kind}: {reply.headers} {reply.text}")
            await asyncio.sleep(self.seconds)
        elif reply.status_code != 200 or not self._right(kind, which, reply.text):
            self.wrong.append(f"{kind}: {reply.status_code} {reply.text[:300]}")
        else:
            self.seconds = time.monotonic() - began

    def _right(self, kind: str, which: int, text: str) -> bool:
        if kind == "search":
            return [p["row_id"] for p in json.loads(text)["results"][0]] == self.rows[which]
        if kind == "answer":
            return bool(json.loads(text)["text"] == self.texts[which])
        if kind == "chat":
            return bool(json.loads(text)["choices"][0]["message"]["content"] == self.texts[which])
        if kind == "stream":
            name, last = events_of(text)[-1]
            return bool((name, last.get("text")) == ("answer", self.texts[which]))
        *chunks, end = (line.removeprefix("data: ") for line in text.split("\n\n") if line)
        content = "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks)
        return (content, end) == (self.texts[which], "[DONE]")

    async def _leave(self, http: httpx.AsyncClient, which: int, early: bool) -> None:
        """A client that goes, before the answer or in the middle of its stream."""
        path, body = asked("stream", which)
        try:
            async with asyncio.timeout(0.05 if early else 900), http.stream("POST", path, json=body) as reply:
                await anext(reply.aiter_lines())
                self.seen["gone", reply.status_code] += 1
        except TimeoutError:
            self.seen["gone", 0] += 1

    async def ended(self) -> None:
        """Wait until the rows of clients that went have left, too."""
        async with asyncio.timeout(120):
            while not {"clara_running 0.0", "clara_waiting 0.0"} <= set(figures := await self._figures()):
                await asyncio.sleep(0.1)
        assert "clara_failures_total 0.0" in figures

    async def _figures(self) -> list[str]:
        (left,) = self.services
        return (await left.get("/metrics")).text.splitlines()


def asked(kind: str, which: int) -> tuple[str, dict[str, Any]]:
    """Path and body of a request."""
    question = QUESTIONS[which]
    if kind == "search":
        return "/v1/search", {"questions": [question], "k": PASSAGES}
    body: dict[str, Any] = {"passages": PASSAGES, "max_tokens": TOKENS, "stream": kind in ("stream", "chat stream")}
    if kind.startswith("chat"):
        messages = [{"role": "user", "content": question}]
        return "/v1/chat/completions", {"model": LIMITS.model_name, "messages": messages, **body}
    return "/v1/answers", {"question": question, **body}


def processor_seconds(*processes: psutil.Process) -> float:
    """Processor time of processes so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def keep(figures: dict[str, Any]) -> None:
    """Print figures, and write them where CLARA_RELEASE_RESULTS names a folder."""
    text = json.dumps(figures, indent=1) + "\n"
    print(text)
    if folder := os.environ.get("CLARA_RELEASE_RESULTS"):
        Path(folder, "load.json").write_text(text, encoding="utf-8")


@pytest.mark.release
def test_each_is_answered_or_refused_and_memory_does_not_grow(
    evaluation_artefacts: World, system: System, tmp_path: Path
) -> None:
    logs = [tmp_path / "killed.txt", tmp_path / "left.txt"]
    # A slow machine takes longer for a full queue than a client would wait.
    patient = "--set=serving.request_seconds=900"
    with (
        process_of(evaluation_artefacts, logs[0], patient) as (killed, one),
        process_of(evaluation_artefacts, logs[1], patient) as (left, other),
    ):
        resident: list[int] = []
        used_by_killed = 0.0

        async def run() -> Load:
            load, numbers = Load([one, other], system), iter(range(NUM_REQUESTS))

            async def client() -> None:
                nonlocal used_by_killed
                for number in numbers:
                    if number == NUM_REQUESTS // 4:
                        used_by_killed = processor_seconds(killed)
                        killed.kill()
                    await load.ask(number)
                    if number % 100 == 0:
                        resident.append(left.memory_info().rss)

            await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
            await load.ended()
            return load

        before, began = processor_seconds(killed, left, psutil.Process()), time.monotonic()
        load = asyncio.run(run())
        seconds, used = time.monotonic() - began, used_by_killed + processor_seconds(left, psutil.Process()) - before
    quarter = len(resident) // 4
    growth = statistics.median(resident[-quarter:]) - statistics.median(resident[quarter : 2 * quarter])
    keep(
        {
            "about": environment("pytest"),
            "requests": NUM_REQUESTS,
            "clients": NUM_CLIENTS,
            "seen": {f"{kind}, {status or 'left before it'}": n for (kind, status), n in sorted(load.seen.items())},
            "sent again as their service was killed": load.resent,
            "seconds": round(seconds, 1),
            "processor milliseconds a request, clients included": round(1000 * used / NUM_REQUESTS, 2),
            "resident MiB at the end": round(resident[-1] / 2**20),
            "growth MiB, second quarter to last": round(growth / 2**20, 1),
        }
    )
    assert load.wrong == []
    assert load.resent > 0
    assert sum(load.seen.values()) == NUM_REQUESTS
    assert {status for _, status in load.seen} <= {0, 200, 429}
    assert sum(count for (_, status), count in load.seen.items() if status == 429) > 0
    assert sum(count for (_, status), count in load.seen.items() if status == 200) > NUM_REQUESTS // 2
    assert growth < MAX_GROWTH_BYTES
    assert not re.search(r"Traceback|\"level\": \"(ERROR|WARNING)\"", logs[1].read_text())
