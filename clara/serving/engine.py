"""The one thread that owns the model: it searches and answers for all requests, and they wait for its events.

Requests wait in a bounded queue. Between two decoding steps the thread lets cancelled rows leave, searches for those
that have come, and lets them join the running batch.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clara.config.serving import Serving
from clara.errors import InputError
from clara.model.decoding import Generation, RunningBatch, TextStream, answer_text, check_length, num_prompt_tokens
from clara.model.precision import DEFAULT_TYPE
from clara.retrieval.answered import Answered, Passage
from clara.retrieval.filter import Filter
from clara.retrieval.fused import Hit
from clara.retrieval.retriever import Retriever
from clara.serving.events import (
    Event,
    FailedError,
    Finished,
    Found,
    Piece,
    QueueFullError,
    Request,
    StoppedError,
    Worked,
)
from clara.serving.metrics import Metrics
from clara.system import System

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """A request in the engine, and where its events go."""

    request: Request
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    came: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def send(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


@dataclass(eq=False)
class _Answering:
    """A job whose row is in the running batch of a system."""

    job: _Job
    system: System
    batch: RunningBatch
    row: Generation
    passages: tuple[Passage, ...]
    num_prompt_tokens: int
    pieces: TextStream


class Engine:
    """Answers requests of many clients with one model.

    Attributes:
        system: used by the engine's thread alone; others may read `retriever.check`.
    """

    def __init__(self, system: System, settings: Serving, metrics: Metrics) -> None:
        """Create the engine; `start` starts its thread.

        Raises:
            InputError: see `RunningBatch`.
        """
        self.system, self._settings, self._metrics = system, settings, metrics
        self._batch = RunningBatch(system.retriever.model)
        self._running: list[_Answering] = []
        self._coming: tuple[System, Serving, RunningBatch] | None = None
        self._waiting: deque[_Job] = deque()
        self._num_taken = 0
        self._changed, self._stopping = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._stopping

    @property
    def settings(self) -> Serving:
        """Limits, and the defaults of the system that answers now."""
        return self._settings

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def swap(self, system: System, settings: Serving) -> None:
        """Let another system take over: it gets every request from the next turn on.

        Answers that have begun are ended by the system that began them, which is then let go. Requests that wait keep
        the numbers of passages and tokens that they came with.

        Args:
            system: used by nobody else from now on.
            settings: its limits and defaults.

        Raises:
            InputError: see `RunningBatch`.
        """
        batch = RunningBatch(system.retriever.model)
        with self._changed:
            self._coming = system, settings, batch
            self._changed.notify()

    def stop(self) -> None:
        """End the thread; requests that are left end with `StoppedError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    async def events(self, request: Request) -> AsyncGenerator[Found | Piece | Finished | Worked, None]:
        """What happens to a request, to its end: `Found`, then for an answer `Piece`s and `Finished`; or `Worked`.

        Closing the iterator cancels the request.

        Raises:
            InputError: the request cannot be answered.
            QueueFullError: it has to be sent again later.
            TimeoutError: `serving.request_seconds` are over.
            StoppedError: the service is being stopped.
            FailedError: a fault of ours.
        """
        self.system.retriever.check(request.questions, request.num_passages, request.max_new_tokens or 1)
        job = _Job(request, asyncio.get_running_loop())
        self._enter(job)
        try:
            end = job.loop.time() + self._settings.request_seconds
            event: Event | None = None
            last = Finished if request.max_new_tokens else Found if request.work is None else Worked
            while not isinstance(event, last):
                event = await asyncio.wait_for(job.events.get(), end - job.loop.time())
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._cancel(job)

    def _enter(self, job: _Job) -> None:
        with self._changed:
            if not self.ready:
                raise StoppedError
            # A request that has to wait for no other is taken, whatever max_waiting is.
            if len(self._waiting) + self._num_taken >= self._settings.max_waiting + self._settings.max_running:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()

    def _cancel(self, job: _Job) -> None:
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    # --- the engine's thread ---

    def _run(self) -> None:
        while (new := self._next()) is not None:
            try:
                with DEFAULT_TYPE:
                    self._turn(new)
            except Exception:
                self._fail([*new, *(answering.job for answering in self._running)])
                self._running, self._batch = [], RunningBatch(self.system.retriever.model)
        for job in [*self._waiting, *(answering.job for answering in self._running)]:
            job.send(StoppedError())

    def _next(self) -> list[_Job] | None:
        """Jobs that begin now: every search, answers while there is room, one of work; None: the service stops."""
        with self._changed:
            self._count(len(self._running))
            self._changed.wait_for(lambda: self._waiting or self._running or self._stopping or self._coming)
            if self._stopping:
                return None
            if self._coming is not None:
                (self.system, self._settings, self._batch), self._coming = self._coming, None
            answers = [job for job in self._waiting if job.request.max_new_tokens]
            works = [job for job in self._waiting if job.request.work]
            late = [*answers[self._settings.max_running - len(self._running) :], *works[1:]]
            new = [job for job in self._waiting if job not in late]
            self._waiting = deque(job for job in self._waiting if job in late)
            self._count(len(self._running) + len(new))
            return new

    def _count(self, num_taken: int) -> None:
        self._num_taken = num_taken
        self._metrics.running.set(num_taken)
        self._metrics.waiting.set(len(self._waiting))

    def _turn(self, new: Sequence[_Job]) -> None:
        """One decoding step; new jobs are searched for, and their rows join."""
        for answering in [a for a in self._running if a.job.cancelled]:
            answering.batch.leave(answering.row)
            self._running.remove(answering)
        for batch in dict.fromkeys(answering.batch for answering in self._running):
            batch.step()
        self._report(self._running)
        joining = list(self._search(new))
        self._batch.join([answering.row for answering in joining])
        self._running += joining
        for answering in joining:
            self._metrics.first_token.observe(time.monotonic() - answering.job.came)
        self._report(joining)
        self._running = [answering for answering in self._running if not answering.row.done]

    def _search(self, new: Iterable[_Job]) -> Iterable[_Answering]:
        """Find the passages of new jobs, those that want as many of the same rows together; rows of those to answer."""
        retriever, groups = self.system.retriever, dict[tuple[int, Filter | None], list[_Job]]()
        for job in new:
            if job.request.work is not None:
                self._work(job, job.request.work)
                continue
            groups.setdefault((job.request.num_passages, job.request.only), []).append(job)
        for (count, only), jobs in groups.items():
            try:
                self._check_filter(only)
                hits = iter(retriever.hits([q for job in jobs for q in job.request.questions], count, only))
            except InputError as error:
                for job in jobs:
                    job.send(error)
                continue
            except Exception:
                self._fail(jobs)
                continue
            for job in jobs:
                own = [next(hits) for _ in job.request.questions]
                passages = tuple(retriever.passages(found) for found in own)
                if not job.request.max_new_tokens:
                    job.send(Found(passages))
                    continue
                try:
                    answering = self._answering(job, own[0], passages[0])
                except InputError as error:
                    job.send(error)
                    continue
                job.send(Found(passages))
                yield answering

    def _work(self, job: _Job, work: Callable[[Retriever], Any]) -> None:
        try:
            job.send(Worked(work(self.system.retriever)))
        except InputError as error:
            job.send(error)
        except Exception:
            self._fail([job])

    def _check_filter(self, only: Filter | None) -> None:
        if only is not None and not only.everything:
            num_rows, most = len(only.rows(self.system.retriever.store)), self._settings.max_filtered_rows
            if num_rows > most:
                raise InputError(
                    f"filter: {num_rows} rows pass, and this service scores {most} at most "
                    "(serving.max_filtered_rows); name fewer documents or sources"
                )

    def _answering(self, job: _Job, hits: Sequence[Hit], passages: tuple[Passage, ...]) -> _Answering:
        retriever, request = self.system.retriever, job.request
        model, question = retriever.model, request.questions[0]
        row = retriever.generation(question, hits, request.max_new_tokens, request.earlier, request.instruction)
        num_tokens = num_prompt_tokens(model, row)
        check_length(model, num_tokens, request.max_new_tokens)
        return _Answering(job, self.system, self._batch, row, passages, num_tokens, TextStream(model, row))

    def _report(self, rows: Sequence[_Answering]) -> None:
        """Send what came: pieces of text, and finished answers."""
        for answering in rows:
            row, job = answering.row, answering.job
            if piece := answering.pieces.more():
                job.send(Piece(piece))
            if row.done:
                retriever, question = answering.system.retriever, job.request.questions[0]
                text = answer_text(retriever.model, row.tokens)
                answered = Answered(question, text, answering.passages, retriever.unread(question))
                job.send(Finished(answered, answering.num_prompt_tokens, len(row.tokens), row.stopped))
                self._metrics.tokens.inc(len(row.tokens))

    def _fail(self, jobs: Sequence[_Job]) -> None:
        logger.exception("requests %s failed", ", ".join(job.request.request_id for job in jobs))
        self._metrics.failures.inc()
        for job in jobs:
            job.send(FailedError())
