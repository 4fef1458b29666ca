"""What an INDEX compares: keys for its first level, unit vectors for the exact second one.

The inner product of a row's key with that of a question is about their score. For the published score a row's key is
the one that MEMORY stores, a projection of the flattened vector. For a centred flattened score it is the projection of
the centred vector. For a score of slot means it is the score's own unit vector of D numbers, so that the inner product
is the score, up to how FAISS stores it.
"""

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from clara.arrays import Floats, Ids
from clara.config.load import explain
from clara.config.model import Score
from clara.memory.keys import KeyProjection, key_projection
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED, centre, unit_rows
from clara.storage.artefact import Artefact

_BLOCK_BYTES = 64 * 2**20  # decoded payload held at once


class IndexKeys:
    """Keys and unit vectors of a MEMORY's rows, and of questions to it, under a score.

    Attributes:
        store: the MEMORY.
        score: the score.
        mean: the corpus' mean `[M, D]`; None if the score is not centred.
        size: numbers of a key.
        flat: FAISS kind in which the keys of a small MEMORY are scanned.
    """

    def __init__(self, store: MemoryStore, score: Score = PUBLISHED) -> None:
        """Keys for a MEMORY under a score.

        Raises:
            InputError: the score is centred, and the MEMORY has no mean.
        """
        self.store, self.score = store, score
        self.mean = store.mean if score.centred else None
        self._projected = score.pooling == "flattened"
        self.size = store.key_size if self._projected else store.hidden_size
        self.flat = "Flat" if self._projected else "SQfp16"

    def __len__(self) -> int:
        return len(self.store)

    @cached_property
    def _projection(self) -> KeyProjection:
        fields = self.store.fingerprint_fields
        return key_projection(fields.num_memory_tokens, fields.hidden_size, fields.key_size, fields.key_seed)

    @property
    def rows_of_block(self) -> int:
        """Rows whose memory is decoded at once."""
        return max(1, _BLOCK_BYTES // (4 * self.store.num_memory_tokens * self.store.hidden_size))

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit vector."""
        return 4 * self.store.hidden_size * (self.store.num_memory_tokens if self._projected else 1)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the recipe of an INDEX holds of them; nothing for the published score."""
        if self.score == PUBLISHED:
            return {}
        mean = {} if self.mean is None else {"mean": hashlib.sha256(self.mean.astype("<f4").tobytes()).hexdigest()}
        return {"score": self.score.model_dump(), **mean}

    def of_rows(self, rows: Ids) -> Floats:
        """Keys `[n, size]` of rows."""
        if self.score == PUBLISHED:
            return self.store.keys(rows)
        out, step = np.empty((len(rows), self.size), np.float32), self.rows_of_block
        for begin in range(0, len(rows), step):
            out[begin : begin + step] = self._keys(self.store.memory(rows[begin : begin + step]), self.mean)
        return out

    def of_queries(self, query: Floats) -> Floats:
        """Keys `[B, size]` of query vectors `[B, M, D]`, from which the model has subtracted the questions' mean."""
        return self._keys(query, None)

    def unit_rows(self, rows: Ids) -> Floats:
        """Unit vectors `[n, F]` of rows, each computed by itself."""
        return unit_rows(self.store.memory(rows), self.score, self.mean)

    def unit_queries(self, query: Floats) -> Floats:
        """Unit vectors `[B, F]` of query vectors `[B, M, D]`."""
        return unit_rows(query, self.score)

    def why_not_those_of(self, index: Artefact) -> str:
        """Why no key of another INDEX can be the same as here; empty: those of unchanged rows are."""
        theirs = score_of(index)
        if theirs != self.score:
            return f"its keys are for the score {named(theirs)}, these for {named(self.score)}"
        if index.manifest["made_by"]["recipe"].get("mean") != self.recipe.get("mean"):
            return "the mean of the corpus, which the score subtracts, is another, and so is every row's key"
        return ""

    def _keys(self, vectors: Floats, mean: Floats | None) -> Floats:
        if not self._projected:
            return unit_rows(vectors, self.score, mean)
        if mean is not None:
            vectors = centre(vectors.reshape(len(vectors), -1), mean.ravel()).reshape(vectors.shape)
        return self._projection.keys(vectors)


def score_of(index: Artefact) -> Score:
    """The score that an INDEX was built for; of an older program's the published one.

    Raises:
        InputError: the manifest holds a score that this program does not know.
    """
    try:
        return Score.model_validate(index.manifest.get("score", {}))
    except ValidationError as error:
        raise explain(error, f"{index.name} manifest.json score") from error


def named(score: Score) -> str:
    """A score in the words of its settings."""
    return f"{score.pooling}{', centred' if score.centred else ''}{' (published)' if score == PUBLISHED else ''}"
