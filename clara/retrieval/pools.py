"""Pools of candidates of a question: rows that the question names, rows that rankers find, and what fills a pool up."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from clara.arrays import Ids
from clara.config.model import SOURCE_SETTINGS, FeatureName, Fusion
from clara.config.tree import Retrieval
from clara.data.questions import Question
from clara.errors import InputError
from clara.index.dense import NAME as DENSE
from clara.index.dense_model import model_hash, open_encoder
from clara.index.words import NAME as WORDS
from clara.memory.store import MemoryStore
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.storage.artefact import Artefact


@dataclass(frozen=True)
class SourceInputs:
    """What a source of candidates may be opened from.

    Attributes:
        store: the MEMORY that is searched.
        index: INDEX over it; None: there is none.
        retrieval: which embedding model; `dense_model` is empty: there is none.
        device: where an embedding model computes.
    """

    store: MemoryStore
    index: Artefact | None = None
    retrieval: Retrieval = field(default_factory=Retrieval)
    device: str = "cpu"
    _opened: dict[FeatureName, Ranker] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ranker(self, name: FeatureName) -> Ranker:
        """The ranker of that name in `TEXT_RANKERS`, opened once.

        Raises:
            InputError: it cannot be opened from what there is.
        """
        if name not in self._opened:
            self._opened[name] = TEXT_RANKERS[name](self)
        return self._opened[name]

    def check_part(self, name: FeatureName, asked: str) -> None:
        """Refuse an INDEX without the part that a ranker of `TEXT_RANKERS` searches.

        Args:
            name: of the ranker.
            asked: what needs it, as the beginning of a sentence.

        Raises:
            InputError: the INDEX has no such part.
        """
        if self.index is not None and not self.index.manifest.get(_PARTS[name]):
            raise InputError(
                f"{asked}, and {self.index.name} has no such part; build the INDEX again "
                f"(python -m pipelines.build_index{' --dense-model FOLDER' if name == 'dense' else ''})"
            )


def open_dense_ranker(inputs: SourceInputs) -> Ranker:
    """The ranker by the dense part of the INDEX.

    Raises:
        InputError: there is no INDEX or no model, or they do not belong together.
    """
    if inputs.index is None or not inputs.retrieval.dense_model:
        missing = "INDEX" if inputs.index is None else "embedding model"
        raise InputError(
            f"candidates by dense vectors (from_dense) need an INDEX built with --dense-model and that "
            f"model, and there is no {missing}; give index and retrieval.dense_model, or set from_dense to 0"
        )
    return DenseRanker.open(inputs.index, inputs.store, open_encoder(inputs.retrieval, inputs.device))


TEXT_RANKERS: dict[FeatureName, Callable[[SourceInputs], Ranker]] = {
    "bm25": lambda inputs: Bm25.open(inputs.index, inputs.store),
    "dense": open_dense_ranker,
}
"""How rankers that read questions as text are opened, by name.

A pool takes rows of each (`SOURCE_SETTINGS`), after those found by query vectors."""
_PARTS: dict[FeatureName, str] = {"bm25": WORDS, "dense": DENSE}
"""The part of an INDEX that each of them searches."""


def feature_rankers(fusion: Fusion, inputs: SourceInputs) -> dict[FeatureName, Ranker]:
    """The rankers whose scores a fused score needs, beside the memory's.

    Raises:
        InputError: the INDEX lacks a part that a weight is for, or the embedding model is missing or another.
    """
    rankers: dict[FeatureName, Ranker] = {}
    for name, weight in fusion.features.items():
        asked = f"the CHECKPOINT's fused score has the weight {weight:g} for {name}"
        if name == "dense":
            if not inputs.retrieval.dense_model:
                raise InputError(f"{asked}; give the folder or URL of its embedding model with --dense-model")
            if inputs.index is None:
                raise InputError(
                    f"{asked}: candidates by dense vectors are found in an INDEX, and there is no INDEX; give one that "
                    "was built with --dense-model"
                )
            if (found := model_hash(inputs.retrieval)) != fusion.dense_model:
                raise InputError(
                    f"{asked} by the model with hash {fusion.dense_model[:12]}…, --dense-model "
                    f"{inputs.retrieval.dense_model!r} has {found[:12]}…; give that model, or fit the score again "
                    "(python -m training.fit_score)"
                )
        inputs.check_part(name, asked)
        rankers[name] = inputs.ranker(name)
    return rankers


@dataclass(frozen=True)
class QuestionRows:
    """Rows of MEMORY that a question names: positives, excluded ones, and its published pool."""

    positive: tuple[int, ...]
    excluded: frozenset[int]
    pool: tuple[int, ...]

    @classmethod
    def of(cls, question: Question, store: MemoryStore) -> "QuestionRows":
        """The rows of the question's documents, each once: a row may represent several documents with equal text.

        An excluded document is no positive either.
        """
        excluded = frozenset(row for document in question.exclude_ids for row in store.rows_of(document))

        def rows(documents: Sequence[str]) -> tuple[int, ...]:
            found = dict.fromkeys(row for document in documents for row in store.rows_of(document))
            return tuple(row for row in found if row not in excluded)

        return cls(rows(question.positive_ids), excluded, rows(question.candidate_ids))


@dataclass(frozen=True)
class Source:
    """A ranker, and how many of its best rows a pool takes."""

    ranker: Ranker
    count: int


def source_counts(settings: object) -> dict[FeatureName, int]:
    """How many rows of a pool each source gives, by settings that have all of `SOURCE_SETTINGS`."""
    return {name: int(getattr(settings, setting)) for name, setting in SOURCE_SETTINGS.items()}


def text_sources(counts: Mapping[FeatureName, int], inputs: SourceInputs) -> list[Source]:
    """The sources of `TEXT_RANKERS` that give rows.

    Args:
        counts: as returned by `source_counts`.
        inputs: what they are opened from.

    Raises:
        InputError: a source cannot be opened from what there is.
    """
    return [Source(inputs.ranker(name), counts[name]) for name in TEXT_RANKERS if counts[name]]


def own_candidates(
    queries: Queries, named: Sequence[QuestionRows], sources: Sequence[Source], *, positives: bool, size: int
) -> list[list[int]]:
    """Each question's own candidates, each row once: positives, then the best rows of all sources in turn.

    Args:
        queries: B questions.
        named: their rows.
        sources: of candidates.
        positives: whether the known positives are among them.
        size: most candidates of a question.
    """
    ranked = [source.ranker.rank(queries, source.count) for source in sources if queries.texts]
    own = []
    for number, rows in enumerate(named):
        first = rows.positive if positives else ()
        own.append(list(dict.fromkeys([*first, *interleave(*(lists[number] for lists in ranked))]))[:size])
    return own


def interleave(*lists: Sequence[int]) -> list[int]:
    """The lists' entries in turn, best first, each entry once."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return list(dict.fromkeys(row for row in turns if row is not None))


def fill(
    own: Sequence[int], others: Sequence[Sequence[int]], excluded: Collection[int], size: int, rng: torch.Generator
) -> list[int]:
    """A question's own candidates, then those of other questions in random order: `size` rows or fewer."""
    pool = list(own[:size])
    if len(pool) < size:
        present = {*pool, *excluded}
        rest = [row for row in dict.fromkeys(itertools.chain.from_iterable(others)) if row not in present]
        order = torch.randperm(len(rest), generator=rng).tolist()
        pool += [rest[i] for i in order[: size - len(pool)]]
    return pool


def fill_at_random(
    own: Sequence[int], row_ids: Ids, excluded: Collection[int], size: int, rng: torch.Generator
) -> list[int]:
    """A question's own candidates, then random rows of a MEMORY, `size` rows or fewer where many are drawn twice."""
    # A sample with replacement: a permutation would read the whole list of rows.
    drawn = row_ids[torch.randint(len(row_ids), (4 * size,), generator=rng).numpy()].tolist()
    return fill(own, [drawn], excluded, size, rng)
