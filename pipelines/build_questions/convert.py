"""Published question-answering files to QUESTIONS and documents, and the recall of BM25 for them."""

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clara.data.questions import Question
from clara.data.records import Document, document_id
from clara.errors import InputError
from clara.metrics import ranking_metrics
from clara.retrieval.bm25 import Bm25
from pipelines.build_questions.published import Published, Row
from pipelines.build_questions.question_format import Built
from pipelines.corpus.arguments import refuse_fields

BM25_CUTOFFS = (1, 5, 20)


@dataclass(frozen=True)
class PublishedFormat:
    """A format of files with one question a row. See `QuestionFormat`.

    Attributes:
        rows: reads the questions of a file, each with its position for messages.
        convert: converts one of them.
        is_pool: whether the documents of a question are its published candidates.
        brings_documents: whether a row holds documents.
    """

    rows: Callable[[str], Iterator[tuple[str, Row]]]
    convert: Callable[[Row, str], Published]
    is_pool: bool = False
    brings_documents: bool = False

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """See `QuestionFormat`."""
        refuse_fields(options, f"--format {options.format} has its own field names")
        return {name: getattr(options, name) for name in ("seed", "split", "skip_bad")}

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """See `QuestionFormat`. Counts: rows = questions + dropped."""
        questions: dict[str, Question] = {}
        documents: dict[str, Document] = {}
        counts: Counter[str] = Counter()
        for where, row in (found for path in files for found in self.rows(path)):
            counts["rows"] += 1
            try:
                question, own = self._question(self.convert(row, where), settings["seed"], settings["split"])
                if question.question_id in questions:
                    raise InputError(
                        f"{where}: question id {question.question_id!r} occurs twice; give each its own, or use "
                        "--skip-bad"
                    )
            except InputError:
                if not settings["skip_bad"]:
                    raise
                counts["dropped: bad"] += 1
                continue
            counts["without a positive"] += not question.positive_ids
            questions[question.question_id] = question
            documents.update((d.id, d) for d in own)
        if not questions:
            raise InputError(f"{', '.join(files)}: no question in it ({dict(counts)}); is --format right?")
        return Built(list(questions.values()), list(documents.values()), dict(counts))

    def _question(self, published: Published, seed: int, split: str) -> tuple[Question, list[Document]]:
        """A question whose documents are named by their content, and those documents."""
        documents = [Document(document_id(p.title, p.text), p.title, p.text) for p in published.paragraphs]
        # A pool may hold a paragraph twice, perhaps marked only once: by its content it is one document, positive if
        # either is.
        hops = {document: 0 for document in published.positive_ids}
        for document, paragraph in zip(documents, published.paragraphs, strict=True):
            if paragraph.positive:
                hops[document.id] = min((h for h in (paragraph.hop, hops.get(document.id, 0)) if h), default=0)
        pool = list(dict.fromkeys(d.id for d in documents)) if self.is_pool else list(published.candidate_ids)
        random.Random(f"{seed}:{published.question_id}").shuffle(pool)
        question = Question(
            published.question_id,
            published.question,
            published.answers,
            tuple(hops),
            tuple(pool),
            split=split or published.split,
            positive_hops=tuple(hops.values()) if any(hops.values()) else (),
        )
        return question, documents


def bm25_recall(questions: Sequence[Question], documents: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Recall@1, 5, 20 of BM25 over the whole corpus, by split and over all: how much of the task common words solve."""
    place = {d.id: number for number, d in enumerate(documents)}
    index = Bm25.of_documents(documents)
    rows, _ = index.search(
        [q.question for q in questions], max(BM25_CUTOFFS), [{place[n] for n in q.exclude_ids} for q in questions]
    )
    rankings = [[row for row in found if row >= 0] for found in rows.tolist()]
    values = ranking_metrics(rankings, [[place[n] for n in q.positive_ids] for q in questions], BM25_CUTOFFS)
    splits = np.array([q.split for q in questions])
    parts = {"all": np.ones(len(questions), bool), **{s: splits == s for s in sorted(set(splits.tolist()))}}
    return {
        part: {f"recall@{k}": round(float(values[f"recall@{k}"][mask].mean()), 4) for k in BM25_CUTOFFS}
        for part, mask in parts.items()
    }


def corpus_rows(documents: Iterable[Document]) -> Iterator[dict[str, str]]:
    """Documents as `build_memory` reads them."""
    return ({"id": d.id, "title": d.title, "text": d.text} for d in documents)
