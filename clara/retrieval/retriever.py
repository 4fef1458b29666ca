"""A system that answers: CHECKPOINT, MEMORY and perhaps INDEX, opened together and checked against each other.

Shapes: B questions, n rows, k rows asked for, M memory tokens, D hidden size.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clara.arrays import NO_ROW, Ids
from clara.config.encoding import type_of_lm
from clara.config.model import Backbone, FeatureName
from clara.config.tree import Retrieval
from clara.data.records import texts_of
from clara.errors import InputError
from clara.memory.batches import plan_batches
from clara.memory.fingerprint import of_checkpoint, of_memory
from clara.memory.mixed_versions import check_accepted, shard_fingerprints
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.model.decoding import Generation, answer_text, generate
from clara.model.model import ClaraModel
from clara.model.prompts import Turn
from clara.model.question_mean import is_missing
from clara.retrieval.answered import Answered, Passage
from clara.retrieval.filter import Filter
from clara.retrieval.fused import FusedRanker, Hit
from clara.retrieval.long_questions import unread_part, warn_of_cuts
from clara.retrieval.memory_ranker import ExactSearch, MemoryRanker, VectorSearch
from clara.retrieval.pools import SourceInputs, feature_rankers
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.request import check_request
from clara.storage.artefact import Artefact
from clara.storage.paths import Name

if TYPE_CHECKING:
    from clara.index.search import OpenIndex, TwoLevels

QUERY_BATCH_TOKENS = 2048
# Rows that pass a filter and are scored at once: their memory is held decoded.
_FILTERED_BLOCK_ROWS = 512


class Retriever:
    """Finds rows of a MEMORY for questions, and answers from them.

    Attributes:
        ranker: ranks rows by the CHECKPOINT's score.
        memory_ranker: ranks rows by the memory alone.
        checkpoint: the open CHECKPOINT; None: the model was not read from one.
    """

    def __init__(
        self,
        model: ClaraModel,
        store: MemoryStore,
        index: "TwoLevels | None" = None,
        rankers: Mapping[FeatureName, Ranker] | None = None,
        *,
        retrieval: Retrieval | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """The parts must fit each other; `open` checks that they do.

        Args:
            model: encodes questions and reads memory.
            store: what is searched.
            index: None searches all rows exactly, at the price of reading the whole payload.
            rankers: those of the features that the model's fused score has weights for.
            retrieval: sizes of a search; None: the defaults.
            checkpoint: what the model was read from, if it was.
        """
        self.checkpoint = checkpoint
        self.model, self.store, self.index, self.settings = model, store, index, retrieval or Retrieval()
        self._search: VectorSearch = ExactSearch(store, model.settings.score) if index is None else index
        fusion = model.settings.fusion
        self.memory_ranker = MemoryRanker(self._search, self.settings.first_level)
        self._fused = None
        if not fusion.published:
            every = {**(rankers or {}), "memory": self.memory_ranker}
            self._fused = FusedRanker(every, fusion, store.row_ids, self.settings)
        self.ranker: Ranker = self._fused or self.memory_ranker

    @classmethod
    def open(
        cls,
        checkpoint: Name | Artefact,
        memory: Name | Artefact,
        index: Name | Artefact | None = None,
        *,
        backbone: str = "",
        device: str = "cpu",
        retrieval: Retrieval | None = None,
        accept_stale: bool = False,
        open_index: "OpenIndex | None" = None,
    ) -> "Retriever":
        """Open the three artefacts; the model computes in the dtype that MEMORY was made in (float32 if int8).

        Args:
            checkpoint: CHECKPOINT.
            memory: MEMORY that this checkpoint's compressor made.
            index: INDEX over that MEMORY.
            backbone: folder of the LM; empty: the one that the checkpoint names or holds.
            device: where the model computes.
            retrieval: sizes of a search, and the folder of the embedding model if the CHECKPOINT's fused score has a
                weight for dense vectors; None: the defaults.
            accept_stale: take a MEMORY that other compressors made, to measure what staleness costs; all other fields
                must agree.
            open_index: opens the INDEX, whose path or URL `index` then is; None: this process maps it.

        Raises:
            InputError: one of them is unfinished or damaged, or they do not belong together.
        """
        settings = retrieval or Retrieval()
        memory, checkpoint = Artefact.open(memory, "MEMORY"), Checkpoint.open(checkpoint)
        encoding = of_memory(memory).encoding
        expected = of_checkpoint(checkpoint, encoding, backbone=backbone)
        stale = shard_fingerprints(memory.manifest, str(memory.folder)) if accept_stale else ()
        accepted = [expected, *(dataclasses.replace(expected, compressor=made.compressor) for made in stale)]
        check_accepted(accepted, memory.manifest, memory.name)
        store = MemoryStore.open(memory, accept=accepted)
        searcher: TwoLevels | None = None
        if index is not None:
            from clara.index.search import MemoryIndex  # FAISS is not needed where there is no INDEX

            how = store, checkpoint.settings.score, settings.exact_rows
            searcher = MemoryIndex.open(index, *how) if open_index is None else open_index(str(index), *how)
        model = load_checkpoint(checkpoint, Backbone(path=backbone, dtype=type_of_lm(encoding.dtype)), device=device)
        if is_missing(model):
            raise InputError(
                f"{checkpoint.name}: its score is centred, and the questions' mean is not known; compute it from "
                "questions of the kind that is asked: python -m training.set_score"
            )
        inputs = SourceInputs(store, None if searcher is None else searcher.artefact, settings, device)
        rankers = feature_rankers(checkpoint.settings.fusion, inputs)
        return cls(model.eval(), store, searcher, rankers, retrieval=settings, checkpoint=checkpoint)

    def queries(self, questions: Sequence[str]) -> Tensor:
        """Query vectors `[B, M, D]` in float32, computed in batches of like length."""
        warn_of_cuts(self.model, questions)
        lengths = [len(self.model.question_ids(q)) for q in questions]
        order = sorted(range(len(questions)), key=lengths.__getitem__)
        queries_BMD = torch.empty(len(questions), self.store.num_memory_tokens, self.store.hidden_size)
        for batch in plan_batches(
            [lengths[i] for i in order], QUERY_BATCH_TOKENS, extra_tokens=self.model.num_memory_tokens + 3
        ):
            rows = [order[i] for i in batch]
            queries_BMD[rows] = self.model.encode_questions([questions[r] for r in rows]).float().cpu()
        return queries_BMD

    def search(
        self, queries_BMD: Tensor, k: int, exclude_documents: Sequence[Collection[str]] | None = None
    ) -> tuple[Ids, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        """The k best rows of each question over the whole MEMORY.

        Args:
            queries_BMD: as returned by `queries`.
            k: rows of a question.
            exclude_documents: for each question, ids of documents that are kept out.

        Returns:
            Row ids int64 `[B, k]`, best first (ties: lower row id), and scores float32 `[B, k]`; `NO_ROW` and −inf
            where there are fewer.
        """
        excluded = None
        if exclude_documents is not None:
            excluded = [
                {row for document in documents for row in self.store.rows_of(document)}
                for documents in exclude_documents
            ]
        return self._search.search(queries_BMD, k, first_level=max(k, self.settings.first_level), exclude=excluded)

    def hits(self, questions: Sequence[str], k: int, only: Filter | None = None) -> list[list[Hit]]:
        """The k best rows of each question by the CHECKPOINT's score, best first.

        Args:
            questions: texts.
            k: rows of a question; fewer if fewer pass the filter.
            only: what is searched; None: the whole MEMORY. All rows that pass are scored.

        Raises:
            InputError: see `Filter.rows`.
        """
        fusion = self.model.settings.fusion
        among = None if only is None or only.everything else only.rows(self.store)
        query_BMD = self.queries(questions) if fusion.a else None
        if among is not None:
            return self._hits_among(Queries(questions, [()] * len(questions), query_BMD), among, k)
        if self._fused is not None:
            return self._fused.hits(Queries(questions, [()] * len(questions), query_BMD), k)
        assert query_BMD is not None  # the published score has the memory's weight
        found = []
        for ids, scores in zip(*(a.tolist() for a in self.search(query_BMD, k)), strict=True):
            pairs = [(row, score) for row, score in zip(ids, scores, strict=True) if row != NO_ROW]
            found.append([Hit(row, s, ("memory",), {"memory": s / fusion.temperature}) for row, s in pairs])
        return found

    def _hits_among(self, queries: Queries, rows: Sequence[int], k: int) -> list[list[Hit]]:
        found: list[list[Hit]] = [[] for _ in queries.texts]
        for begin in range(0, len(rows), _FILTERED_BLOCK_ROWS):
            block = rows[begin : begin + _FILTERED_BLOCK_ROWS]
            if self._fused is not None:
                hits = self._fused.hits_among(queries, block, k)
            else:
                tau = self.model.settings.fusion.temperature
                scores = self.memory_ranker.score(queries, [block] * len(found))
                hits = [
                    [Hit(row, s, ("memory",), {"memory": s / tau}) for row, s in zip(block, own, strict=True)]
                    for own in scores
                ]
            found = [
                sorted([*best, *more], key=lambda hit: (-hit.score, hit.row_id))[:k]
                for best, more in zip(found, hits, strict=True)
            ]
        return found

    @property
    def reads_text(self) -> bool:
        """Whether the generator reads the text of passages, not their memory (`model.reads`)."""
        return self.model.settings.reads == "text"

    def memories(self, row_ids: Sequence[int]) -> Tensor:
        """Memory `[n, M, D]` of rows, as the generator reads them; none where it reads text."""
        return torch.from_numpy(self.store.memory([] if self.reads_text else row_ids))

    def texts(self, row_ids: Sequence[int]) -> list[str] | None:
        """Texts of rows, as the generator reads them in the prompt; None where it reads memory."""
        return texts_of(self.store.records(row_ids)) if self.reads_text else None

    def check(self, questions: Sequence[str], num_selected: int, max_new_tokens: int) -> None:
        """Refuse a request that cannot be answered.

        Raises:
            InputError: a question is empty or not valid Unicode, K is not between 1 and the number of rows, or
                `max_new_tokens` is below 1.
        """
        check_request(questions, num_selected, max_new_tokens, len(self.store))

    def unread(self, question: str) -> str:
        """The end of a question that its query vector does not depend on; empty where there is none, or no vector."""
        return unread_part(self.model, question) if self.model.settings.fusion.a else ""

    def passages(self, hits: Sequence[Hit]) -> tuple[Passage, ...]:
        """The rows of hits as passages, in their order."""
        return tuple(
            Passage(c.row_id, c.document_id, c.title, c.text, hit.score, hit.sources, hit.contributions)
            for c, hit in zip(self.store.records([hit.row_id for hit in hits]), hits, strict=True)
        )

    def generation(
        self,
        question: str,
        hits: Sequence[Hit],
        max_new_tokens: int,
        earlier: Sequence[Turn] = (),
        instruction: str = "",
    ) -> Generation:
        """The answer to a question from the rows of hits, before its first token; see `PromptBuilder.conversation`."""
        rows = [hit.row_id for hit in hits]
        prompt = self.model.prompts.conversation(earlier, question, instruction, self.texts(rows))
        return Generation(prompt, self.memories(rows), max_new_tokens)

    def ask(
        self,
        questions: Sequence[str],
        *,
        num_selected: int = 5,
        max_new_tokens: int = 32,
        batch_size: int = 8,
        only: Filter | None = None,
    ) -> list[Answered]:
        """Answer each question greedily from the K rows that suit it best.

        Args:
            questions: texts, none of them empty.
            num_selected: K.
            max_new_tokens: longest answer.
            batch_size: answers that are generated together; in float32 their tokens do not depend on it.
            only: what is searched.

        Raises:
            InputError: see `check` and `Filter.rows`.
        """
        self.check(questions, num_selected, max_new_tokens)
        if not questions:
            return []
        found = self.hits(questions, num_selected, only)
        rows = (
            self.generation(question, hits, max_new_tokens) for question, hits in zip(questions, found, strict=True)
        )
        return [
            Answered(question, answer_text(self.model, row.tokens), self.passages(hits), self.unread(question))
            for question, hits, row in zip(questions, found, generate(self.model, rows, batch_size), strict=True)
        ]
