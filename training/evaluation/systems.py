"""Evaluating one system: rank, read, measure; a row of the table for each question and way of finding."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from clara.artefact import manifest_hash
from clara.errors import InputError
from clara.questions import Question
from clara.retriever import Retriever
from training.evaluation.finders import CONDITIONS, Bm25Finder, Corpus, Finder, MemoryFinder, Selection, select
from training.evaluation.measures import Row, answer_measures, likelihood_measures, retrieval_measures
from training.evaluation.readers import MemoryReader, Reader, Reading, TextReader

KEPT_DOCUMENTS = 20
BASELINES = ("bm25", "text")


@dataclass(frozen=True)
class SystemPaths:
    """A named CHECKPOINT with its MEMORY and, where there is one, its INDEX."""

    name: str
    checkpoint: str
    memory: str
    index: str | None = None

    @classmethod
    def parse(cls, text: str) -> "SystemPaths":
        """`NAME=CHECKPOINT,MEMORY[,INDEX]`.

        Raises:
            InputError: other parts than these.
        """
        name, _, rest = text.partition("=")
        paths = [p.strip() for p in rest.split(",")]
        if not name.strip() or "/" in name or len(paths) not in (2, 3) or not all(paths):
            raise InputError(f"--system {text!r}: expected NAME=CHECKPOINT,MEMORY or NAME=CHECKPOINT,MEMORY,INDEX (no / in the name)")
        return cls(name.strip(), paths[0], paths[1], paths[2] if len(paths) == 3 else None)

    def hashes(self) -> dict[str, str]:
        """Manifest hashes of its artefacts."""
        named = {"checkpoint": self.checkpoint, "memory": self.memory, "index": self.index}
        return {kind: manifest_hash(path) for kind, path in named.items() if path is not None}


@dataclass(frozen=True)
class Settings:
    """What an evaluation does with every system.

    Attributes:
        num_selected: K, rows in a prompt.
        pool_size: documents of a pool that has to be made, where a question was published without one.
        max_new_tokens: longest answer.
        num_generated: questions of each split that are answered in words as well; 0: none.
        generate_conditions: what they are answered from.
        baselines: `bm25`, `text`.
        retrieval_only: rank and read nothing: no likelihoods, no answers.
    """

    num_selected: int = 5
    pool_size: int = 20
    max_new_tokens: int = 16
    num_generated: int = 0
    generate_conditions: tuple[str, ...] = ("index", "right", "none")
    baselines: tuple[str, ...] = ()
    retrieval_only: bool = False


def open_system(paths: SystemPaths, backbone: str, *, accept_stale: bool, device: str) -> Retriever:
    """Open a system's artefacts, with its name in front of what is wrong with them.

    Raises:
        InputError: see `Retriever.open`.
    """
    try:
        index = Path(paths.index) if paths.index else None
        return Retriever.open(paths.checkpoint, paths.memory, index, backbone=backbone, accept_stale=accept_stale, device=device)
    except InputError as error:
        raise InputError(f"system {paths.name}: {error}") from error


def evaluate_system(name: str, retriever: Retriever, questions: Sequence[Question], settings: Settings, *, with_text: bool) -> list[Row]:
    """Rows of one system and of the baselines that share its generator, MEMORY and LM.

    Args:
        name: the system's rows are called so, BM25's `bm25/NAME`, those of text in the prompt `text/bm25`.
        retriever: the open system.
        questions: with their splits.
        settings: what to do.
        with_text: whether the text baseline is measured on this one (it depends on the LM alone, so once is enough).

    Raises:
        InputError: no question has a right document in this MEMORY, or K is larger than the MEMORY.
    """
    corpus = Corpus(retriever.store)
    _check(name, questions, corpus, settings)
    pools = [corpus.rows(corpus.pool(q, settings.pool_size)) for q in questions]
    reader = MemoryReader(retriever)
    ways: list[tuple[str, Finder, Reader]] = [(name, MemoryFinder(retriever), reader)]
    if settings.baselines:
        lexical = Bm25Finder(retriever.store)
        if "bm25" in settings.baselines:
            ways.append((f"bm25/{name}", lexical, reader))
        if "text" in settings.baselines and with_text:
            ways.append(("text/bm25", lexical, TextReader(retriever)))
    rows = []
    for label, finder, way_reader in ways:
        rows += _evaluate_way(label, finder, way_reader, questions, pools, corpus, settings)
    return rows


def _check(name: str, questions: Sequence[Question], corpus: Corpus, settings: Settings) -> None:
    if settings.num_selected > len(corpus.store):
        raise InputError(
            f"system {name}: num_selected is {settings.num_selected}, its MEMORY holds {len(corpus.store)} rows; lower --num-selected"
        )
    labelled = [q for q in questions if q.positive_ids]
    if labelled and not any(corpus.rows(q.positive_ids) for q in labelled):
        raise InputError(
            f"system {name}: none of the {len(labelled)} questions has a right document in {corpus.store.directory} (first: "
            f"{labelled[0].positive_ids[0]!r} of question {labelled[0].question_id!r}); give the MEMORY of the corpus that they were made from"
        )


def _evaluate_way(
    label: str,
    finder: Finder,
    reader: Reader,
    questions: Sequence[Question],
    pools: Sequence[Sequence[int]],
    corpus: Corpus,
    settings: Settings,
) -> list[Row]:
    rankings = finder.rank(questions, pools)
    selections = [select(q, r, corpus, settings.num_selected) for q, r in zip(questions, rankings, strict=True)]
    readings = [{} if settings.retrieval_only else _readings(q, s) for q, s in zip(questions, selections, strict=True)]
    wanted = [reading for chosen in readings for reading in chosen.values()]
    with _bar(f"{label}: likelihoods", reader.likelihood_tokens(wanted)) as bar:
        likelihoods = reader.likelihoods(wanted, bar.update)
    told = _generated(questions, settings.num_generated)
    to_answer = [
        r
        for q, chosen in zip(questions, readings, strict=True)
        if q.question_id in told
        for c, r in chosen.items()
        if c in settings.generate_conditions
    ]
    texts = {}
    if to_answer:
        with _bar(f"{label}: answers", reader.answer_tokens(to_answer, settings.max_new_tokens)) as bar:
            texts = reader.answers(to_answer, settings.max_new_tokens, bar.update)
    positives = [q.positive_ids for q in questions]
    index_documents = [corpus.ranked_documents(r.index) for r in rankings]
    pool_documents = [corpus.ranked_documents(r.pool) for r in rankings]
    retrieved = zip(
        index_documents,
        pool_documents,
        retrieval_measures("index", index_documents, positives),
        retrieval_measures("pool", pool_documents, positives),
        strict=True,
    )
    rows = []
    for question, chosen, (index, pool, over_index, in_pool) in zip(questions, readings, retrieved, strict=True):
        row: Row = {"system": label, "split": question.split, "question_id": question.question_id, "question": question.question}
        row |= {"answers": list(question.answers), "positive_ids": list(question.positive_ids)}
        row |= {"index_documents": index[:KEPT_DOCUMENTS], "pool_documents": pool[:KEPT_DOCUMENTS]}
        row |= over_index | in_pool
        row |= likelihood_measures({condition: likelihoods[reading] for condition, reading in chosen.items()})
        if chosen:
            row["num_answer_tokens"] = likelihoods[chosen["none"]].num_tokens
        for condition, reading in chosen.items():
            if question.question_id in told and condition in settings.generate_conditions:
                row[f"{condition}_answer"] = texts[reading]
                row |= answer_measures(condition, texts[reading], question)
        rows.append(row)
    return rows


def _readings(question: Question, selection: Selection) -> dict[str, Reading]:
    chosen = {condition: getattr(selection, condition) for condition in CONDITIONS}
    return {c: Reading(question.question, question.answers[0], rows) for c, rows in chosen.items() if rows is not None}


def _generated(questions: Sequence[Question], num_generated: int) -> set[str]:
    """Ids of the first `num_generated` questions of each split."""
    splits: dict[str, list[str]] = {}
    for question in questions:
        splits.setdefault(question.split, []).append(question.question_id)
    return {name for names in splits.values() for name in names[:num_generated]}


def _bar(title: str, tokens: int) -> "tqdm[Any]":
    return tqdm(total=tokens, desc=title, unit="tok", unit_scale=True, file=sys.stderr, mininterval=1.0)


def missing_documents(questions: Sequence[Question], retriever: Retriever) -> Mapping[str, int]:
    """How many questions know no right document, and how many know some of which MEMORY has none."""
    unlabelled = sum(not q.positive_ids for q in questions)
    absent = sum(bool(q.positive_ids) and not any(retriever.store.rows_of(d) for d in q.positive_ids) for q in questions)
    return {"questions without known positives": unlabelled, "questions whose positives are not in MEMORY": absent}
