"""Published records to QUESTIONS and documents, and what BM25 finds for them."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from clara.data.questions import Question
from clara.data.records import Document, document_id, input_text
from clara.errors import InputError
from clara.metrics import ranking_metrics
from clara.retrieval.bm25 import Bm25
from pipelines.build_questions.formats import Format, Published

BM25_CUTOFFS = (1, 5, 20)


def to_question(published: Published, form: Format, seed: int, split: str) -> tuple[Question, list[Document]]:
    """A question whose documents are named by their content, and those documents."""
    documents = [Document(document_id(p.title, p.text), p.title, p.text) for p in published.paragraphs]
    # A paragraph may stand in a pool twice, also with one of both unmarked: by its content it is one document, right if
    # either is.
    hops = {document: 0 for document in published.positive_ids}
    for document, paragraph in zip(documents, published.paragraphs, strict=True):
        if paragraph.positive:
            hops[document.id] = min((h for h in (paragraph.hop, hops.get(document.id, 0)) if h), default=0)
    pool = list(dict.fromkeys(d.id for d in documents)) if form.is_pool else list(published.candidate_ids)
    random.Random(f"{seed}:{published.question_id}").shuffle(pool)
    known = tuple(hops.values()) if any(hops.values()) else ()
    question = Question(
        published.question_id,
        published.question,
        published.answers,
        tuple(hops),
        tuple(pool),
        split=split or published.split,
        positive_hops=known,
    )
    return question, documents


def convert_files(
    files: Sequence[str], form: Format, *, seed: int, split: str, skip_bad: bool
) -> tuple[list[Question], dict[str, Document], dict[str, int]]:
    """Questions of files, their documents by id, and counts: rows = questions + dropped.

    Raises:
        InputError: a row is bad (unless they are skipped), an id stands twice, or no question is left.
    """
    questions: dict[str, Question] = {}
    documents: dict[str, Document] = {}
    counts: Counter[str] = Counter()
    for path in files:
        for where, row in form.rows(path):
            counts["rows"] += 1
            try:
                question, own = to_question(form.convert(row, where), form, seed, split)
                if question.question_id in questions:
                    raise InputError(
                        f"{where}: question id {question.question_id!r} stands twice; give each its own, or use --skip-bad"
                    )
            except InputError:
                if not skip_bad:
                    raise
                counts["dropped: bad"] += 1
                continue
            counts["without a positive"] += not question.positive_ids
            questions[question.question_id] = question
            documents.update((d.id, d) for d in own)
    if not questions:
        raise InputError(f"{', '.join(files)}: no question in it ({dict(counts)}); is --format right?")
    return list(questions.values()), documents, dict(counts)


def bm25_recall(questions: Sequence[Question], documents: Sequence[Document]) -> dict[str, dict[str, float]]:
    """Recall@1, 5, 20 of BM25 over the whole corpus, by split and over all: how much of the task common words solve."""
    place = {d.id: number for number, d in enumerate(documents)}
    index = Bm25([input_text(d.title, d.text) for d in documents], range(len(documents)))
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
