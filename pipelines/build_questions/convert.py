"""Published question-answering files to QUESTIONS and documents, and the recall of BM25 for them."""

import argparse
import hashlib
import logging
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
from pipelines.build_questions.detect import FieldsOfRows, hint
from pipelines.build_questions.multi_hop import NO_PARAGRAPH, NO_TEXT
from pipelines.build_questions.published import Published
from pipelines.build_questions.question_format import Built
from pipelines.build_questions.row import Row
from pipelines.corpus.arguments import refuse_fields

BM25_CUTOFFS = (1, 5, 20)
NOT_JUDGED, UNREAD = "dropped: not judged", "rows with fields that are not read"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedFormat:
    """A format of files with one question a row. See `QuestionFormat`.

    Attributes:
        name: that `--format` takes.
        rows: reads the questions of a file, each with its position for messages.
        convert: converts one of them; None: the row is left out, as nothing is known of it.
        is_pool: whether the documents of a question are its published candidates.
        brings_documents: whether a row holds documents.
        has_ids: whether these bring ids.
        has_qrels: whether `--qrels` applies.
    """

    name: str
    rows: Callable[[str], Iterator[tuple[str, Any]]]
    convert: Callable[[Row], Published | None]
    is_pool: bool = False
    brings_documents: bool = False
    has_ids: bool = False
    has_qrels: bool = False

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """See `QuestionFormat`."""
        refuse_fields(options, f"--format {self.name} has its own field names")
        if options.qrels and not self.has_qrels:
            raise InputError(f"--qrels {options.qrels[0]}: --format {self.name} has no judgements apart; leave it out")
        if options.document_ids != "given" and not self.has_ids:
            raise InputError(
                f"--document-ids {options.document_ids}: --format {self.name} brings no ids of documents; leave it out"
            )
        found = {name: getattr(options, name) for name in ("seed", "split", "skip_bad")}
        return found | ({"document_ids": options.document_ids} if self.has_ids else {})

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """See `QuestionFormat`. Counts: rows = questions + dropped."""
        questions: dict[str, Question] = {}
        documents: dict[str, Document] = {}
        counts: Counter[str] = Counter()
        fields = FieldsOfRows(self.name)
        for where, values in (found for path in files for found in self.rows(path)):
            counts["rows"] += 1
            try:
                row = Row(values, where)
                published = self.convert(row)
                if published is None:
                    counts[NOT_JUDGED] += 1
                    continue
                question, own = self._question(published, settings)
                if question.question_id in questions:
                    raise InputError(
                        f"{where}: question id {question.question_id!r} occurs twice; give each its own, or use "
                        "--skip-bad"
                    )
                _check_ids(own, documents, where)
            except InputError as error:
                if not settings["skip_bad"]:
                    raise InputError(f"{error}{hint(values, self.name)}") from error
                counts["dropped: bad"] += 1
                continue
            fields.add(row)
            counts.update(published.notes)
            counts["without a positive"] += not question.positive_ids
            counts["without an answer"] += not question.answers
            questions[question.question_id] = question
            documents.update((d.id, d) for d in own)
        if not questions:
            raise InputError(f"{', '.join(files)}: no question in it ({dict(counts)}); is --format right?")
        if not counts["without an answer"]:
            del counts["without an answer"]
        self._report(files, counts, fields)
        return Built(list(questions.values()), list(documents.values()), dict(counts))

    def _report(self, files: Sequence[str], counts: Counter[str], fields: FieldsOfRows) -> None:
        """Report what was left out of rows that were read."""
        where = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        for note in (NO_TEXT, NO_PARAGRAPH):
            if counts[note]:
                _log.warning("%s: %d %s", where, counts[note], note)
        if counts["without an answer"]:
            _log.warning(
                "%s: %d of %d questions have no answer; they can be searched for (evaluate --retrieval-only), and "
                "nothing else",
                where,
                counts["without an answer"],
                counts["rows"],
            )
        if fields.num_rows:
            counts[UNREAD] = fields.num_rows
            _log.warning("%s: %s", where, fields.report(counts["rows"]))

    def _question(self, published: Published, settings: Mapping[str, Any]) -> tuple[Question, list[Document]]:
        """A question whose documents are named by their own ids or by their content, and those documents."""
        given = settings.get("document_ids") == "given"
        documents = [
            Document((p.id if given else "") or document_id(p.title, p.text), p.title, p.text)
            for p in published.paragraphs
        ]
        # A pool may hold a paragraph twice, perhaps marked only once: by its content it is one document, positive if
        # either is.
        hops = {document: 0 for document in published.positive_ids}
        for document, paragraph in zip(documents, published.paragraphs, strict=True):
            if paragraph.positive:
                hops[document.id] = min((h for h in (paragraph.hop, hops.get(document.id, 0)) if h), default=0)
        pool = list(dict.fromkeys(d.id for d in documents)) if self.is_pool else list(published.candidate_ids)
        question_id = published.question_id or hashed_id(published.question)
        random.Random(f"{settings['seed']}:{question_id}").shuffle(pool)
        question = Question(
            question_id,
            published.question,
            published.answers,
            tuple(hops),
            tuple(pool),
            split=settings["split"] or published.split,
            positive_hops=tuple(hops.values()) if any(hops.values()) else (),
            positive_grades=published.positive_grades,
        )
        return question, documents


def _check_ids(own: Iterable[Document], known: Mapping[str, Document], where: str) -> None:
    """Refuse an id of two documents.

    Raises:
        InputError: there is one.
    """
    seen: dict[str, Document] = {}
    for document in own:
        other = known.get(document.id) or seen.setdefault(document.id, document)
        if (other.title, other.text) != (document.title, document.text):
            raise InputError(
                f"{where}: document id {document.id!r} has the text {document.text[:40]!r} here, "
                f"{other.text[:40]!r} before; give each document its own, or use --document-ids content"
            )


def hashed_id(question: str) -> str:
    """The id of a question that brings none."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def bm25_recall(questions: Sequence[Question], documents: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Recall@1, 5, 20 of BM25 over the whole corpus, by split and over all: how much of the task common words solve."""
    position = {d.id: number for number, d in enumerate(documents)}
    index = Bm25.of_documents(documents)
    rows, _ = index.search(
        [q.question for q in questions], max(BM25_CUTOFFS), [{position[n] for n in q.exclude_ids} for q in questions]
    )
    rankings = [[row for row in found if row >= 0] for found in rows.tolist()]
    values = ranking_metrics(rankings, [[position[n] for n in q.positive_ids] for q in questions], BM25_CUTOFFS)
    splits = np.array([q.split for q in questions])
    parts = {"all": np.ones(len(questions), bool), **{s: splits == s for s in sorted(set(splits.tolist()))}}
    return {
        part: {f"recall@{k}": round(float(values[f"recall@{k}"][mask].mean()), 4) for k in BM25_CUTOFFS}
        for part, mask in parts.items()
    }


def corpus_rows(documents: Iterable[Document]) -> Iterator[dict[str, str]]:
    """Documents as `build_memory` reads them."""
    return ({"id": d.id, "title": d.title, "text": d.text} for d in documents)
