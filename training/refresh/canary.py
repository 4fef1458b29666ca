"""Staleness, measured: a fixed set of rows is encoded afresh and set beside what MEMORY holds of them.

Shapes: n canary rows, Q canary questions, M memory tokens, D hidden size.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clara.arrays import Floats, Ids
from clara.config.model import Score
from clara.data.questions import Question, choose, evenly
from clara.data.records import texts_of
from clara.index.scores import best
from clara.memory.compress import Compressor
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED, unit_rows
from clara.model.model import ClaraModel
from training.loop.engine import Engine

_AT_ONCE = 8
_FIGURES = ("canary_cosine", "canary_cosine_lowest", "canary_overlap", "canary_recall_stored", "canary_recall_fresh")


def canary_questions(questions: list[Question], count: int) -> list[Question]:
    """Questions to measure with: held-out ones with a known positive, else of the training split, evenly spread."""
    return choose(questions, count) or evenly([q for q in questions if q.split == "train"], count)


def canary_rows(questions: Sequence[Question], store: MemoryStore, count: int) -> Ids:
    """At most `count` row ids, ascending, the same for every version: positives, filled up evenly from all rows."""
    positives = [store.rows_of(document)[:1] for q in questions for document in q.positive_ids[:1]]
    chosen = list(dict.fromkeys(row for rows in positives for row in rows))[:count]
    rest = np.setdiff1d(store.row_ids, chosen)
    more = evenly(rest.tolist(), count - len(chosen))
    return np.sort(np.array([*chosen, *more], np.int64))


class Canary:
    """A fixed set of rows and questions."""

    def __init__(
        self,
        questions: list[Question],
        store: MemoryStore,
        *,
        num_rows: int,
        num_selected: int,
    ) -> None:
        """Choose the sample of rows.

        Args:
            questions: as returned by `canary_questions`.
            store: any version; later ones hold the same rows.
            num_rows: rows at most.
            num_selected: K; what is the same among the K best of the canary rows.
        """
        self.rows = canary_rows(questions, store, num_rows)
        self._questions = questions
        self._k = min(num_selected, len(self.rows))
        here = set(self.rows.tolist())
        self._positive = [{row for d in q.positive_ids for row in store.rows_of(d)} & here for q in questions]

    @torch.no_grad()
    def measure(self, model: ClaraModel, store: MemoryStore, engine: Engine) -> dict[str, float]:
        """Figures of a version against the model as it is (collectives; every rank gets the same numbers).

        `canary_cosine` and `canary_cosine_lowest`: of stored and fresh memory, mean and smallest. `canary_overlap`:
        share of the K best canary rows of a question that stay the same. `canary_recall_stored`, `_fresh`, `_gap`
        (fresh − stored): of questions whose positive is a canary row, how many have it among the K best; left out where
        there is none. `canary_seconds`: what it took.
        """
        began = time.monotonic()
        texts = texts_of(store.records(self.rows))
        fresh = _shared(engine, texts, lambda part: encode_texts(model, part))
        query = _shared(engine, [q.question for q in self._questions], model.encode_questions)
        # One rank's arithmetic holds for all: a trigger must fire on every rank or on none.
        stored = store.memory(self.rows)
        score = model.settings.score
        mean = store.mean if score.centred else None
        own = self.compare(query, stored, fresh, score, mean) if engine.rank == 0 else [0.0] * (len(_FIGURES) + 1)
        *values, with_recall = engine.sum(own)
        figures = dict(zip(_FIGURES, values, strict=True))
        if with_recall:
            figures["canary_recall_gap"] = figures["canary_recall_fresh"] - figures["canary_recall_stored"]
        else:
            del figures["canary_recall_stored"], figures["canary_recall_fresh"]
        return figures | {"canary_seconds": time.monotonic() - began}

    def compare(
        self, query: Floats, stored: Floats, fresh: Floats, score: Score = PUBLISHED, mean: Floats | None = None
    ) -> list[float]:
        """The figures in order of `_FIGURES`, and whether the recalls mean anything (1 or 0).

        Args:
            query: `[Q, M, D]`.
            stored: `[n, M, D]`.
            fresh: `[n, M, D]`.
            score: by which rows are ranked; the cosine of stored and fresh memory is that of the flattened vectors.
            mean: the version's mean `[M, D]`, if the score is centred.
        """
        cosine = np.einsum("nf,nf->n", unit_rows(stored), unit_rows(fresh))
        unit_query = unit_rows(query, score)
        old, new = (self._best(unit_query @ unit_rows(rows, score, mean).T) for rows in (stored, fresh))
        overlap = np.mean([len(np.intersect1d(a, b)) / self._k for a, b in zip(old, new, strict=True)])
        asked = [number for number, positive in enumerate(self._positive) if positive]
        recalls = [
            np.mean([bool(self._positive[n] & {*found[n].tolist()}) for n in asked]) if asked else 0.0
            for found in (old, new)
        ]
        return [float(v) for v in (cosine.mean(), cosine.min(), overlap, *recalls, bool(asked))]

    def _best(self, scores: Floats) -> NDArray[np.int64]:
        return np.stack([self.rows[best(row, self.rows, self._k)] for row in scores])


def encode_texts(model: Compressor, texts: Sequence[str]) -> Tensor:
    """Memory `[B, M, D]` of texts as the compressor is now."""
    return model.compress([model.document_ids(text) for text in texts])


def _shared(engine: Engine, items: Sequence[str], encode: Callable[[Sequence[str]], Tensor]) -> Floats:
    """Encodings of all items in order: every rank makes as many passes, each over its share, and gets all of them."""
    share = -(-len(items) // engine.world)
    # Ranks whose share is short encode the first items again: under ZeRO-3 a pass is a collective.
    own = [items[position % len(items)] for position in range(engine.rank, share * engine.world, engine.world)]
    parts = [encode(own[begin : begin + _AT_ONCE]) for begin in range(0, share, _AT_ONCE)]
    gathered = engine.gather(torch.cat(parts).float().cpu())
    whole: Floats = gathered.transpose(0, 1).flatten(0, 1)[: len(items)].numpy()
    return whole
