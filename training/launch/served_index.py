"""An INDEX whose rows are held by search servers, as a rank opens it."""

from collections.abc import Sequence

import numpy as np

from clara.arrays import Floats, Ids
from clara.config.model import Score
from clara.config.tree import Retrieval
from clara.index.scores import Ranked
from clara.index.search import KIND, OpenIndex, TwoLevels, check_fits
from clara.index.share import owner_of
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.storage.artefact import Artefact
from clara.storage.paths import from_root
from training.launch.search_servers import Servers


class ServedIndex(TwoLevels):
    """An INDEX whose rows are held by search servers."""

    def __init__(
        self,
        store: MemoryStore,
        servers: Servers,
        artefact: Artefact | None,
        score: Score = PUBLISHED,
        exact_rows: int = 0,
    ) -> None:
        super().__init__(store, artefact, score, exact_rows)
        self.servers = servers

    def _best_keys(self, keys: Floats, wanted: int) -> list[list[Ranked]]:
        return list(self.servers.ask("best_keys", dict.fromkeys(range(len(self.servers)), (keys, wanted))).values())

    def cosines(self, query: Floats, candidates: Sequence[Ids]) -> list[Floats]:
        """See the base class."""
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
        for number, part in self.servers.ask(
            "memory", {n: (rows[owner == n],) for n in np.unique(owner).tolist()}
        ).items():
            out[owner == number] = part
        return out


def served(settings: Retrieval, *, owner: bool) -> OpenIndex:
    """How a rank opens an INDEX of this run: through servers, which rank 0 starts and owns.

    They end with it.

    The servers of the version before the last are ended: no rank searches them any more, as all have taken a step on
    the one after.
    """
    opened: dict[str, Servers] = {}

    def open_index(index_dir: str, store: MemoryStore, score: Score = PUBLISHED, exact_rows: int = 0) -> ServedIndex:
        artefact = Artefact.open(index_dir, KIND, lazy=True)
        check_fits(artefact, store, score)
        key = artefact.hash
        if key not in opened:
            opened[key] = Servers(store.name, from_root(index_dir), settings, owner=owner)
            for old in list(opened)[:-2]:
                servers = opened.pop(old)
                if owner:
                    servers.stop()
            if owner:
                opened[key].start()
        return ServedIndex(store, opened[key], artefact, score, exact_rows)

    return open_index
