"""Evaluate one system: every pairing of a retriever and a reader that it takes part in, a row for each question.

A way is called RETRIEVER/GENERATOR, as `bm25/after`; `after` alone is after/after, and `text/bm25` the plain LM on the
passages that BM25 found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clara.config.evaluation import CONDITIONS
from clara.config.roles import GENERATOR as ROLE
from clara.data.questions import Question
from clara.errors import InputError
from clara.index.dense_model import Encoder
from clara.progress import Progress
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from training.evaluation.alignment import GENERATOR, TEXT, aligned_rows
from training.evaluation.measures import Row, answer_measures, hop_measures, likelihood_measures, retrieval_measures
from training.evaluation.readers import Likelihood, MemoryReader, Reader, Reading, ReadingCache, TextReader
from training.evaluation.retrievers import (
    DEPTH,
    Corpus,
    Rankings,
    Selection,
    rank_and_score,
    select,
)
from training.evaluation.systems import Settings

KEPT_DOCUMENTS = 20


@dataclass(frozen=True)
class Pairing:
    """A name, what was found for each question, and who reads it."""

    label: str
    rankings: Sequence[Rankings]
    reader: Reader


@dataclass
class ReadingCaches:
    """What the systems of one evaluation share: the embedding model, and what readers said, by what that depends on.

    With a directory, it outlives the process: `save` after each system.
    """

    dense: Encoder | None = None
    directory: Path | None = None
    _known: dict[str, ReadingCache] = field(default_factory=dict)

    def known(self, identity: str) -> ReadingCache:
        """What readers of this identity have computed, and what gets more of it."""
        if identity not in self._known:
            self._known[identity] = (
                ReadingCache.load(self.directory / self._name(identity)) if self.directory else ReadingCache()
            )
        return self._known[identity]

    def save(self) -> None:
        """Write what has been read."""
        if self.directory:
            for identity, known in self._known.items():
                known.save(self.directory / self._name(identity))

    @staticmethod
    def _name(identity: str) -> str:
        return f"readings-{identity[:16]}.json"


def pools_of(questions: Sequence[Question], corpus: Corpus, settings: Settings) -> list[list[int]]:
    """Rows of every question's pool."""
    return [corpus.rows(corpus.pool(q, settings.pool_size)) for q in questions]


def own_rankings(name: str, retriever: Retriever, questions: Sequence[Question], settings: Settings) -> list[Rankings]:
    """What a system's own retrieval finds.

    Raises:
        InputError: no question has a right document in this MEMORY, or K is larger than the MEMORY.
    """
    corpus = Corpus(retriever.store)
    _check(name, questions, corpus, settings)
    queries = Queries.of(questions, retriever.store, retriever.queries([q.question for q in questions]))
    return rank_and_score(retriever.ranker, queries, pools_of(questions, corpus, settings), retriever.store)


def evaluate_system(
    name: str,
    retriever: Retriever,
    questions: Sequence[Question],
    settings: Settings,
    *,
    with_text: bool,
    shared: ReadingCaches | None = None,
    found: Mapping[str, Sequence[Rankings]] | None = None,
) -> list[Row]:
    """Rows of one system and of everything that shares its generator, MEMORY and LM.

    Args:
        name: the system's rows are called so, those of the retriever R that its generator reads `R/NAME`.
        retriever: the open system.
        questions: with their splits.
        settings: what to do.
        with_text: whether the text baselines are measured on this one (they depend on the LM alone, so once is enough).
        shared: what other systems of this evaluation have computed.
        found: what every system's retrieval found, by name, where all generators read it; None: only this one's, which
            is then computed.

    Raises:
        InputError: see `own_rankings`.
    """
    corpus, shared = Corpus(retriever.store), shared or ReadingCaches()
    found = {name: own_rankings(name, retriever, questions, settings)} if found is None else found
    _check(name, questions, corpus, settings)
    pools = pools_of(questions, corpus, settings)
    known = shared.known(MemoryReader.identity(retriever))
    generator: Reader = (
        TextReader(retriever, known, role=ROLE) if retriever.reads_text else MemoryReader(retriever, known)
    )
    text = TextReader(retriever, shared.known(TextReader.identity(retriever)))
    rankers = _baseline_rankers(retriever, settings, shared)
    queries = Queries.of(questions, retriever.store)
    ranked = {base: rank_and_score(ranker, queries, pools, retriever.store) for base, ranker in rankers.items()}
    lexical = ranked.get("bm25", ())
    baselines = {base: rankings for base, rankings in ranked.items() if base in settings.baselines}
    ways = [Pairing(name, found[name], generator)]
    ways += [
        Pairing(f"{other}/{name}", rankings, generator)
        for other, rankings in ({**found, **baselines}).items()
        if other != name
    ]
    if "text" in settings.baselines:
        if with_text:
            ways += [
                Pairing(f"text/{base}", rankings, text) for base, rankings in ({"bm25": lexical} | baselines).items()
            ]
        if settings.cross:
            ways.append(Pairing(f"text/{name}", found[name], text))
    rows = []
    for way in ways:
        readers = {TEXT: text} if way.reader is text else {GENERATOR: generator, TEXT: text}
        rows += _evaluate_way(way, questions, lexical, readers, corpus, settings)
        shared.save()
    return rows


def _baseline_rankers(retriever: Retriever, settings: Settings, shared: ReadingCaches) -> dict[str, Ranker]:
    """BM25, if any baseline or the alignment needs it, and the dense model, if asked for."""
    index = None if retriever.index is None else retriever.index.artefact
    rankers: dict[str, Ranker] = {}
    if settings.baselines or settings.num_aligned:
        rankers["bm25"] = Bm25.open(index, retriever.store)
    if "dense" in settings.baselines:
        if shared.dense is None:
            raise InputError(
                "--baselines dense needs a model; name its sentence-transformers folder with --dense-model"
            )
        rankers["dense"] = DenseRanker.of_index_or_memory(index, retriever.store, shared.dense)
    return rankers


def _check(name: str, questions: Sequence[Question], corpus: Corpus, settings: Settings) -> None:
    if settings.num_selected > len(corpus.store):
        raise InputError(
            f"system {name}: num_selected is {settings.num_selected}, its MEMORY holds {len(corpus.store)} rows; "
            "lower --num-selected"
        )
    labelled = [q for q in questions if q.positive_ids]
    if labelled and not any(corpus.rows(q.positive_ids) for q in labelled):
        raise InputError(
            f"system {name}: none of the {len(labelled)} questions has a right document in {corpus.store.directory} "
            f"(first: {labelled[0].positive_ids[0]!r} of question {labelled[0].question_id!r}); give the MEMORY of the "
            "corpus that they were made from"
        )


def _evaluate_way(
    way: Pairing,
    questions: Sequence[Question],
    lexical: Sequence[Rankings],
    readers: Mapping[str, Reader],
    corpus: Corpus,
    settings: Settings,
) -> list[Row]:
    selections = [select(q, r, corpus, settings.num_selected) for q, r in zip(questions, way.rankings, strict=True)]
    readings = [
        {} if settings.retrieval_only else _readings(q, s, settings.conditions)
        for q, s in zip(questions, selections, strict=True)
    ]
    likelihoods = _likelihoods(way, [reading for chosen in readings for reading in chosen.values()])
    answered = first_of_each_split(questions, settings.num_generated)
    texts = _texts(way, questions, readings, answered, settings)
    aligned: dict[str, Row] = {}
    if settings.num_aligned:
        first = first_of_each_split(questions, settings.num_aligned)
        which = [i for i, q in enumerate(questions) if q.question_id in first and way.rankings[i].pool]
        aligned = aligned_rows(
            way.label,
            [questions[i] for i in which],
            [way.rankings[i] for i in which],
            [lexical[i] for i in which],
            readers,
            settings.num_selected,
            corpus.store,
        )
    rows = []
    for question, chosen, retrieved in zip(
        questions, readings, _retrieval_rows(questions, way.rankings, corpus), strict=True
    ):
        row: Row = {
            "system": way.label,
            "split": question.split,
            "kind": question.kind,
            "question_id": question.question_id,
            "question": question.question,
        }
        row |= {"answers": list(question.answers), "positive_ids": list(question.positive_ids)} | retrieved
        row |= likelihood_measures({condition: likelihoods[reading] for condition, reading in chosen.items()})
        for reading in list(chosen.values())[:1]:
            row["num_answer_tokens"] = likelihoods[reading].num_tokens
        for condition, reading in chosen.items():
            if question.question_id in answered and condition in settings.generate_conditions:
                row[f"{condition}_answer"] = texts[reading]
                row |= answer_measures(condition, texts[reading], question)
        rows.append(row | aligned.get(question.question_id, {}))
    return rows


def _likelihoods(way: Pairing, readings: Sequence[Reading]) -> dict[Reading, Likelihood]:
    if not readings:
        return {}
    tokens = way.reader.likelihood_tokens(readings)  # 0 where another pairing has read all of them
    with Progress(tokens, f"{way.label}: likelihoods", " tokens", unit_scale=True, shown=bool(tokens)) as bar:
        return way.reader.likelihoods(readings, bar.update)


def _texts(
    way: Pairing,
    questions: Sequence[Question],
    readings: Sequence[Mapping[str, Reading]],
    answered: set[str],
    settings: Settings,
) -> dict[Reading, str]:
    """Generated answers of the questions in `answered`."""
    wanted = [
        reading
        for question, chosen in zip(questions, readings, strict=True)
        if question.question_id in answered
        for condition, reading in chosen.items()
        if condition in settings.generate_conditions
    ]
    if not wanted:
        return {}
    tokens = way.reader.answer_tokens(wanted, settings.max_new_tokens)
    with Progress(tokens, f"{way.label}: answers", " tokens", unit_scale=True, shown=bool(tokens)) as bar:
        return way.reader.answers(wanted, settings.max_new_tokens, bar.update)


def _retrieval_rows(questions: Sequence[Question], rankings: Sequence[Rankings], corpus: Corpus) -> list[Row]:
    """The best documents of each question, and all measures of rankings."""
    judged = [corpus.judged(q) for q in questions]
    questions = [question for question, _ in judged]
    positives = [q.positive_ids for q in questions]
    index = [corpus.ranked_documents(r.index, names) for r, (_, names) in zip(rankings, judged, strict=True)]
    pool = [corpus.ranked_documents(r.pool, names) for r, (_, names) in zip(rankings, judged, strict=True)]
    rows: list[Row] = []
    grades = [q.positive_grades for q in questions]
    measured = zip(
        retrieval_measures("index", index, positives, grades),
        retrieval_measures("pool", pool, positives, grades),
        strict=True,
    )
    for question, over_index, in_pool, (index_measures, pool_measures) in zip(
        questions, index, pool, measured, strict=True
    ):
        row: Row = {"index_documents": over_index[:KEPT_DOCUMENTS], "pool_documents": in_pool[:KEPT_DOCUMENTS]}
        # Beyond the depth of a ranking the rank is unknown: the next one is a lower bound.
        hops = hop_measures("index", over_index, question, DEPTH + 1) | hop_measures("pool", in_pool, question)
        rows.append(row | index_measures | pool_measures | hops)
    return rows


def _readings(question: Question, selection: Selection, conditions: Sequence[str]) -> dict[str, Reading]:
    chosen = {condition: getattr(selection, condition) for condition in CONDITIONS if condition in conditions}
    return {c: Reading(question.question, question.answers[0], rows) for c, rows in chosen.items() if rows is not None}


def first_of_each_split(questions: Sequence[Question], number: int) -> set[str]:
    """Ids of the first questions of each split."""
    splits: dict[str, list[str]] = {}
    for question in questions:
        splits.setdefault(question.split, []).append(question.question_id)
    return {name for names in splits.values() for name in names[:number]}
