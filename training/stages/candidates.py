"""Candidates of training questions: index ∪ BM25 ∪ dense vectors ∪ the other questions' of the step.

The lists of a question depend on the question, the weights and the MEMORY version alone, and what fills a pool up on
the seed, the step and the question's place in it: neither on how many ranks share the step nor on how it is cut into
micro-batches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clara.arrays import Floats
from clara.config.model import Fusion, Score
from clara.config.stages import Joint
from clara.config.tree import Retrieval
from clara.data.questions import Question
from clara.data.records import input_text, texts_of
from clara.errors import InputError
from clara.index.search import TwoLevels
from clara.memory.store import MemoryStore
from clara.model.array_geometry import PUBLISHED
from clara.model.fusion import PUBLISHED as ALONE
from clara.model.fusion import fused
from clara.model.model import ClaraModel
from clara.retrieval.fused import FusedRanker
from clara.retrieval.memory_ranker import MemoryRanker
from clara.retrieval.pools import (
    QuestionRows,
    Source,
    SourceInputs,
    feature_rankers,
    fill,
    own_candidates,
    source_counts,
    text_sources,
)
from clara.retrieval.ranker import Queries, Ranker

_MOST_TOKENISED = 100_000


def generator(seed: int, step: int, position: int) -> torch.Generator:
    """Random numbers that belong to one question of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 65_537 + position)


class Candidates:
    """Draws pools over one MEMORY version at a time; `use` switches to another, which holds the same rows.

    Attributes:
        store: MEMORY.
        index: INDEX over it; None where no candidate comes from an index.
        score: of the model.
        inputs: what rankers of texts are opened from.
    """

    def __init__(
        self,
        settings: Joint,
        retrieval: Retrieval,
        *,
        seed: int,
        store: MemoryStore,
        index: TwoLevels | None,
        device: str = "cpu",
        score: Score = PUBLISHED,
        fusion: Fusion = ALONE,
    ) -> None:
        """Open the sources that read questions as text, where the settings ask for rows of them.

        Args:
            settings: which sources, and N.
            retrieval: sizes of a search, and the embedding model, for dense vectors.
            seed: of what fills pools up.
            store: MEMORY.
            index: over it; None where no candidate comes from an index.
            device: where the embedding model computes.
            score: of the model.
            fusion: of the model.

        Raises:
            InputError: see `text_sources` and `feature_rankers`.
        """
        self._settings, self._retrieval, self._seed = settings, retrieval, seed
        self.store, self.index, self.score = store, index, score
        # Another version of MEMORY has the same texts, so that what is opened from these stays so for the whole run.
        self.inputs = SourceInputs(store, None if index is None else index.artefact, retrieval, device)
        self._text_sources = [] if settings.published_pool else text_sources(source_counts(settings), self.inputs)
        self.rank_by(fusion)
        self._tokens: dict[int, list[int]] = {}

    def use(self, store: MemoryStore, index: TwoLevels | None) -> None:
        """Take another version of the same rows.

        Raises:
            InputError: its rows are others.
        """
        if not np.array_equal(store.row_ids, self.store.row_ids):
            raise InputError(
                f"{store.directory}: its rows are not those of {self.store.directory}; a run's versions hold the "
                "same rows"
            )
        self.store, self.index = store, index

    def rank_by(self, fusion: Fusion) -> None:
        """Take another fused score.

        Raises:
            InputError: see `feature_rankers`.
        """
        self._fusion, self._feature_rankers = fusion, feature_rankers(fusion, self.inputs)

    def own(
        self, questions: Sequence[Question], known: Sequence[QuestionRows], query_BMD: Tensor | None
    ) -> list[list[int]]:
        """Own candidates of each question, N at most: positives, then all sources in turn; or its published pool.

        Args:
            questions: of this rank.
            known: their rows.
            query_BMD: query vectors of the current query reasoner; None where no index is searched.
        """
        settings = self._settings
        if settings.published_pool:
            first = [k.positive if settings.inject_positives else () for k in known]
            own = [dict.fromkeys([*some, *k.pool]) for some, k in zip(first, known, strict=True)]
            return [list(rows)[: settings.num_candidates] for rows in own]
        sources = self._text_sources
        if query_BMD is not None and self.index is not None and settings.from_index:
            sources = [Source(MemoryRanker(self.index, self._retrieval.first_level), settings.from_index), *sources]
        queries = Queries([q.question for q in questions], [set(k.excluded) for k in known], query_BMD)
        return own_candidates(
            queries, known, sources, positives=settings.inject_positives, size=settings.num_candidates
        )

    @property
    def ranker(self) -> Ranker | None:
        """Ranks all rows by the model's score; None without an INDEX, if the score needs one."""
        memory = None if self.index is None else MemoryRanker(self.index, self._retrieval.first_level)
        if self._fusion.published or memory is None:
            return memory
        rankers = {**self._feature_rankers, "memory": memory}
        return FusedRanker(rankers, self._fusion, self.store.row_ids, self._retrieval)

    def pools(
        self, own: Sequence[Sequence[int]], positions: Sequence[int], known: Sequence[QuestionRows], step: int
    ) -> list[list[int]]:
        """The pools of the questions at some positions of a step.

        Args:
            own: own candidates of all questions of the step.
            positions: of the wanted questions.
            known: their rows, one entry for each position.
            step: 0-based.

        Raises:
            InputError: a pool is empty.
        """
        pools = []
        for position, k in zip(positions, known, strict=True):
            others = [own[p] for p in range(len(own)) if p != position] if self._settings.in_batch else []
            pool = fill(
                own[position], others, k.excluded, self._settings.num_candidates, generator(self._seed, step, position)
            )
            if not pool:
                raise InputError(
                    f"question {position} of step {step + 1}: no candidate at all; raise joint.from_index or "
                    "joint.from_bm25, set joint.in_batch, "
                    "or give a MEMORY that holds its candidate_ids"
                )
            pools.append(pool)
        return pools

    def memory(self, pools: Sequence[Sequence[int]], size: int) -> tuple[Tensor, Tensor]:
        """Stored memory of pools `[B, size, M, D]` in float32, padded with zeros, and what is filled `[B, size]`."""
        memory = torch.zeros(len(pools), size, self.store.num_memory_tokens, self.store.hidden_size)
        valid = torch.zeros(len(pools), size, dtype=torch.bool)
        for row, pool in enumerate(pools):
            memory[row, : len(pool)] = self.stored(pool)
            valid[row, : len(pool)] = True
        return memory, valid

    def features(self, questions: Sequence[Question], pools: Sequence[Sequence[int]], size: int) -> Tensor | None:
        """Features `[B, size, F]` of pools for the fused score, padded with zeros; None where it weighs none."""
        if not self._feature_rankers:
            return None
        queries = Queries([q.question for q in questions], [()] * len(questions))
        features = torch.zeros(len(pools), size, len(self._feature_rankers))
        for number, ranker in enumerate(self._feature_rankers.values()):
            for row, values in enumerate(ranker.score(queries, pools)):
                features[row, : len(values), number] = torch.tensor(values)
        return features

    def fused(self, cosine_N: Floats, question: Question, pool: Sequence[int]) -> Floats:
        """Scores `[N]` of one question's pool by the model's score."""
        features_BNF = self.features([question], [pool], len(pool))
        scores: Floats = fused(torch.from_numpy(cosine_N)[None], features_BNF, self._fusion)[0].numpy()
        return scores

    def stored(self, rows: Sequence[int]) -> Tensor:
        """Stored memory of rows `[n, M, D]` in float32, from who holds them."""
        return torch.from_numpy((self.store if self.index is None else self.index).memory(rows))

    def texts(self, rows: Sequence[int]) -> list[str]:
        """Texts of rows, as a prompt holds them."""
        return texts_of(self.store.records(rows))

    def token_ids(self, rows: Sequence[int], model: ClaraModel) -> list[list[int]]:
        """Token ids of rows' texts, uncut as in MEMORY's own encoding; cached, as a row is a candidate many times."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._tokens]
        if len(self._tokens) + len(missing) > _MOST_TOKENISED:
            self._tokens.clear()
            missing = list(dict.fromkeys(rows))
        for chunk in self.store.records(missing):
            self._tokens[chunk.row_id] = model.document_ids(input_text(chunk.title, chunk.text))
        return [self._tokens[row] for row in rows]
