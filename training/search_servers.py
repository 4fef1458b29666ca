"""Search servers: Ray actors that hold a share of an INDEX's rows each, for an index larger than a machine.

A query goes to all of them. Each answers with ids and scores by key; those among the best L of all are then scored exactly where they lie, and
only memory that is asked for travels. A server that dies is started again, by Ray while it has restarts left and else by rank 0; whoever asks waits
for it, `retrieval.search_seconds` at most.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from clara.artefact import manifest_hash
from clara.codec import Floats
from clara.config import Index
from clara.errors import InputError
from clara.index import IndexedRows, Ranked, TwoLevels
from clara.index_share import open_share, owner_of
from clara.memory import Ids, MemoryStore

logger = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5
_LOOK_SECONDS = 1.0


class SearchLostError(InputError):
    """A search server did not answer in time; the message says which and what is known of it."""


class SearchServer:
    """One owner of rows; what it holds is opened at the first question, so that what is wrong with it is told to who asks."""

    def __init__(self, memory: str, index: str, number: int, num_servers: int, threads: int) -> None:
        faiss.omp_set_num_threads(threads)
        self._memory, self._index, self._number, self._num_servers = memory, index, number, num_servers

    @cached_property
    def _rows(self) -> IndexedRows:
        # The ranks have checked that every version in it is one of their run.
        return open_share(self._index, MemoryStore.open(self._memory, mixed=True), self._number, self._num_servers)

    def process(self) -> int:
        """Its process id."""
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

    def __init__(self, memory: str, index: str, settings: Index, *, owner: bool) -> None:
        self._memory, self._index, self._settings, self._owner = memory, index, settings, owner
        self._name = f"search-{manifest_hash(index)[:16]}"
        self._handles: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._settings.search_shards

    def name(self, number: int) -> str:
        """Of one server, within the Ray job."""
        return f"{self._name}-{number}-of-{len(self)}"

    def ask(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask servers, all at once; the answer of each.

        Raises:
            SearchLostError: one did not answer within the time.
            InputError: of a server, about what it is to open.
        """
        answers: dict[int, Any] = {}
        deadline, failure = time.monotonic() + self._settings.search_seconds, ""
        while missing := sorted(set(arguments) - set(answers)):
            waiting = {number: self._begin(number, method, arguments[number]) for number in missing}
            for number, reference in waiting.items():
                if reference is None:
                    continue
                try:
                    answers[number] = self._answer(reference, deadline)
                except GetTimeoutError:
                    raise self._lost([number], method, failure) from None
                except RayActorError as error:
                    # Gone for good: rank 0 starts it anew, the others look for its name again. The handles of the others must stay, as Ray ends an
                    # actor whose owner has none.
                    failure = str(error).strip().splitlines()[0]
                    logger.warning("search: %s is not there (%s)", self.name(number), failure)
                    self._handles.pop(number, None)
            if len(answers) < len(arguments):
                if time.monotonic() >= deadline:
                    raise self._lost(sorted(set(arguments) - set(answers)), method, failure)
                time.sleep(_RETRY_SECONDS)
        return answers

    @staticmethod
    def _answer(reference: Any, deadline: float) -> Any:
        """What a server says, before the deadline.

        In short waits against the clock: Ray adds up the waits that it meant to make, not what they took on a machine without free processor time.
        """
        while True:
            left = deadline - time.monotonic()
            try:
                return ray.get(reference, timeout=max(0.0, min(left, _LOOK_SECONDS)))
            except GetTimeoutError:
                if left <= 0:
                    raise

    def _begin(self, number: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """The answer to come; None where no server of that name is there yet."""
        if number not in self._handles:
            try:
                self._handles[number] = self._start(number) if self._owner else ray.get_actor(self.name(number))
            except ValueError:  # rank 0 has not started it
                return None
        return getattr(self._handles[number], method).remote(*arguments)

    def _lost(self, missing: Sequence[int], method: str, failure: str) -> SearchLostError:
        servers = ", ".join(self.name(number) for number in missing)
        return SearchLostError(
            f"search: no answer to {method} within retrieval.search_seconds = {self._settings.search_seconds:g} from {servers} over {self._index}"
            f"{f' ({failure})' if failure else ' (it is starting, or busy, or its node is lost)'}; this rank stops, and the run goes on from its last state "
            "where launch.max_failures allows or the same command is run again"
        )

    def _start(self, number: int) -> Any:
        settings = self._settings
        options = {
            "name": self.name(number), "get_if_exists": True, "num_cpus": settings.search_cpus, "max_restarts": settings.search_restarts,
            "max_task_retries": -1, "scheduling_strategy": "SPREAD",
        }  # fmt: skip
        threads = max(1, int(settings.search_cpus))
        return ray.remote(SearchServer).options(**options).remote(self._memory, self._index, number, len(self), threads)

    def stop(self) -> None:
        """End them; of the owner alone."""
        for handle in self._handles.values():
            ray.kill(handle)
        self._handles.clear()


class ServedIndex(TwoLevels):
    """An INDEX whose rows are held by search servers."""

    def __init__(self, store: MemoryStore, servers: Servers, hash: str) -> None:
        super().__init__(store, hash)
        self.servers = servers

    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        return list(self.servers.ask("best_keys", dict.fromkeys(range(len(self.servers)), (keys, wanted))).values())

    def _cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        owners = [owner_of(rows, len(self.servers)) for rows in candidates]
        asked = {
            number: (query, [rows[owner == number] for rows, owner in zip(candidates, owners, strict=True)])
            for number in range(len(self.servers))
            if any((owner == number).any() for owner in owners)
        }
        scores = [np.empty(len(rows), np.float32) for rows in candidates]
        for number, found in self.servers.ask("cosines", asked).items():
            for whole, owner, part in zip(scores, owners, found, strict=True):
                whole[owner == number] = part
        return scores

    def memory(self, row_ids: Sequence[int] | Ids) -> Floats:
        """See the base class."""
        rows = np.asarray(row_ids, np.int64)
        owner = owner_of(rows, len(self.servers))
        out = np.empty((len(rows), self.store.num_memory_tokens, self.store.hidden_size), np.float32)
        for number, part in self.servers.ask("memory", {n: (rows[owner == n],) for n in np.unique(owner).tolist()}).items():
            out[owner == number] = part
        return out


def served(settings: Index, *, owner: bool) -> Callable[[str, MemoryStore], TwoLevels]:
    """How a rank opens an INDEX of this run: through servers, which rank 0 starts and owns, so that they end when it does.

    The servers of the version before the last are ended: no rank searches them any more, as all have taken a step on the one after.
    """
    opened: dict[str, Servers] = {}

    def open_index(index_dir: str, store: MemoryStore) -> ServedIndex:
        key = manifest_hash(index_dir)
        if key not in opened:
            opened[key] = Servers(str(store.directory.absolute()), str(index_dir), settings, owner=owner)
            for old in list(opened)[:-2]:
                servers = opened.pop(old)
                if owner:
                    servers.stop()
        return ServedIndex(store, opened[key], key)

    return open_index
