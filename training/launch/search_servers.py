"""Search servers: Ray actors that hold a share of an INDEX's rows each, for an index larger than a machine.

A query goes to all of them. Each answers with ids and scores by key; those among the best L of all are then scored
exactly by the servers that have them: only requested memory travels. Rank 0 starts all servers on opening the INDEX, as
another rank may need one that rank 0 never asks. A server that dies is started again, by Ray while it has restarts left
and else by rank 0 when it asks it next; whoever asks waits for it, `retrieval.search_seconds` at most.

Who waits, and how long: a rank waits for what it asked (a search asks twice, reading memory once), by the clock and in
`Servers.ask` alone. All that calls Ray is in a thread of that question, because those calls keep other limits: looking
up or starting an actor waits for Ray's control store (a minute or longer), a call with large arguments for room in the
object store (for ever), and the timeout of `ray.get` lags where processors are scarce. A rank that gives up ends by
`SearchLostError`; what happens then is in `training.launch.ray_train`.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import faiss
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from clara.arrays import Floats, Ids
from clara.config.tree import Retrieval
from clara.errors import UnavailableError
from clara.index.indexed_rows import IndexedRows
from clara.index.scores import Ranked
from clara.index.share import open_share
from clara.memory.store import MemoryStore
from clara.storage.manifest import manifest_hash

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 1.0


class SearchLostError(UnavailableError):
    """A search server did not answer in time; the message says which and what is known of it."""


class SearchServer:
    """Owns a share of the rows; opens them at the first question, so that errors reach the caller."""

    def __init__(self, memory: str, index: str, number: int, num_servers: int, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        self._memory, self._index, self._number, self._num_servers = memory, index, number, num_servers

    @cached_property
    def _rows(self) -> IndexedRows:
        # The ranks have checked that every version in it is one of their run.
        return open_share(self._index, MemoryStore.open(self._memory, mixed=True), self._number, self._num_servers)

    def process(self) -> int:
        """Process id of the server."""
        return os.getpid()

    def best_keys(self, keys: Floats, wanted: int) -> list[Ranked]:
        """See `IndexedRows`."""
        return self._rows.best_keys(keys, wanted)

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See `IndexedRows`."""
        return self._rows.cosines(query, candidates)

    def memory(self, row_ids: Ids) -> Floats:
        """See `IndexedRows`."""
        return self._rows.memory(row_ids)


class Servers:
    """Handles of the servers of one INDEX, which rank 0 starts and every rank finds by name."""

    def __init__(self, memory: str, index: str, settings: Retrieval, *, owner: bool) -> None:
        # Names that mean the same on every machine.
        self.names, self._settings, self._owner = (memory, index), settings, owner
        self._name = f"search-{manifest_hash(index)[:16]}"
        self._handles: dict[int, Any] = {}
        self._finding = threading.Lock()
        self._stopped = threading.Event()

    def __len__(self) -> int:
        return self._settings.search_shards

    def name(self, number: int) -> str:
        """Of one server, within the Ray job."""
        return f"{self._name}-{number}-of-{len(self)}"

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask servers, all at once; the answer of each, in the order of `arguments`.

        Raises:
            SearchLostError: one did not answer within the time.
            InputError: of a server, about what it is to open.
        """
        question = _Question(self, method, arguments)
        question.start()
        question.join(self._settings.search_seconds)
        question.given_up.set()
        if question.error is not None:
            raise question.error
        if question.missing:
            raise self._lost(question)
        return {number: question.answers[number] for number in arguments}

    def begin(self, number: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """The answer to come; None where no server of that name is there yet."""
        try:
            handle = self._handle(number)
        except ValueError:  # rank 0 has not started it
            return None
        return getattr(handle, method).remote(*arguments)

    def _handle(self, number: int) -> Any:
        """Of one server, found by name, or of the owner started.

        Raises:
            ValueError: none of that name is there.
            GetTimeoutError: Ray's control store did not answer.
        """
        if (known := self._handles.get(number)) is not None:
            return known
        with (
            self._finding
        ):  # two threads that start one server would hold a handle each, and Ray ends it with the first that is dropped
            if (known := self._handles.get(number)) is None:
                known = self._handles[number] = self._start(number) if self._owner else ray.get_actor(self.name(number))
            return known

    def start(self) -> None:
        """Start all of them, in a thread; of the owner alone."""
        threading.Thread(target=self._start_all, name="search-start", daemon=True).start()

    def _start_all(self) -> None:
        waiting = list(range(len(self)))
        while waiting and ray.is_initialized() and not self._stopped.is_set():  # else Ray would start again
            try:
                self._handle(waiting[0])
                waiting.pop(0)
            except GetTimeoutError as error:
                logger.warning(
                    "search: %s is not started yet (%s)", self.name(waiting[0]), str(error).strip().splitlines()[0]
                )
                self._stopped.wait(_RETRY_SECONDS)

    def forget(self, number: int) -> None:
        """A server is gone for good: rank 0 restarts it at the next question, the others look for its name again.

        The handles of the others must stay, as Ray ends an actor whose owner has none.
        """
        self._handles.pop(number, None)

    def _lost(self, question: "_Question") -> SearchLostError:
        servers, settings = ", ".join(self.name(number) for number in question.missing), self._settings
        reason = f" ({question.failure})" if question.failure else " (it is starting, or busy, or its node is lost)"
        return SearchLostError(
            f"search: no answer to {question.method} within retrieval.search_seconds = {settings.search_seconds:g} "
            f"from {servers} over {self.names[1]}"
            f"{reason}; this rank stops, and the run resumes "
            "from its last state where launch.max_failures allows or the same command is run again, on a cluster "
            f"with room for {len(self)} servers of "
            f"retrieval.search_cpus = {settings.search_cpus:g}"
        )

    def _start(self, number: int) -> Any:
        settings = self._settings
        options = {
            "name": self.name(number),
            "get_if_exists": True,
            "num_cpus": settings.search_cpus,
            "max_restarts": settings.search_restarts,
            "max_task_retries": -1,
            "scheduling_strategy": "SPREAD",
        }
        threads = max(1, int(settings.search_cpus))
        return ray.remote(SearchServer).options(**options).remote(*self.names, number, len(self), threads)

    def stop(self) -> None:
        """End them; of the owner alone."""
        self._stopped.set()
        for handle in list(self._handles.values()):
            ray.kill(handle)
        self._handles.clear()


class _Question(threading.Thread):
    """One question to some servers: asks until all have answered, or the caller has given up.

    Nobody else calls Ray for it.

    Attributes:
        answers: so far, by server.
        failure: why a server was not there, as last seen.
        error: what ended it without all answers.
        given_up: set by who waits no longer; then it ends as soon as Ray lets it.
    """

    def __init__(self, servers: Servers, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> None:
        # A daemon, as a call that never comes back must not keep a process from ending.
        super().__init__(name=f"search-{method}", daemon=True)
        self._servers, self.method, self._arguments = servers, method, arguments
        self.answers: dict[int, Any] = {}
        self.failure = ""
        self.error: Exception | None = None
        self.given_up = threading.Event()

    @property
    def missing(self) -> list[int]:
        """Servers that have not answered."""
        return sorted(set(self._arguments) - set(self.answers))

    def run(self) -> None:
        """Send the requests and wait for all replies."""
        try:
            waiting: dict[Any, int] = {}
            while (missing := self.missing) and not self.given_up.is_set():
                for number in set(missing) - set(waiting.values()):
                    if (reference := self._begin(number)) is not None:
                        waiting[reference] = number
                if not waiting:
                    self.given_up.wait(_RETRY_SECONDS)
                    continue
                ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_LOOK_SECONDS)
                for reference in ready:
                    self._take(waiting.pop(reference), reference)
        except Exception as error:  # reported to the caller
            self.error = error

    def _begin(self, number: int) -> Any:
        try:
            return self._servers.begin(number, self.method, self._arguments[number])
        except GetTimeoutError as error:  # the control store is busy, or away
            self._note(number, error)
            return None

    def _take(self, number: int, reference: Any) -> None:
        try:
            self.answers[number] = ray.get(reference)
        except RayActorError as error:
            self._note(number, error)
            self._servers.forget(number)
            self.given_up.wait(_RETRY_SECONDS)
        except ObjectLostError as error:  # the node of an answer was lost before it had come
            self._note(number, error)

    def _note(self, number: int, error: Exception) -> None:
        self.failure = str(error).strip().splitlines()[0]
        logger.warning("search: %s is not there (%s)", self._servers.name(number), self.failure)
