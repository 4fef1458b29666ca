"""Utility alignment: whether a retriever's scores order a pool as the documents' use for the answer does.

The utility of a candidate is the gain in the answer's log-likelihood from its being among the selected: with it minus
without it, the others kept; one that is not selected is put in the place of the last. Its solo utility: alone against
nothing. Both are measured by the reader: the generator, and the plain LM on raw text, which saw none of the training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clara.data.questions import Question
from clara.memory.store import MemoryStore
from clara.progress import Progress
from training.evaluation.measures import Row
from training.evaluation.readers import Likelihood, Reader, Reading
from training.evaluation.retrievers import Rankings

CANDIDATES = "alignment_candidates"
"""Column of a row that holds its pool: a dictionary for each candidate, best first."""
GENERATOR, TEXT = "generator", "text"
_FEWEST = 3
_MOST_OF_A_QUESTION = 2


@dataclass(frozen=True)
class Probe:
    """Two readings; the answer's log-likelihood in the first minus that in the second is a utility."""

    present: Reading
    absent: Reading


def probes(question: Question, ranked: Sequence[int], num_selected: int) -> dict[int, Probe]:
    """What has to be read for the utility of each row of a pool, given best first, among the K selected."""
    answer = question.answers[0]
    selected = tuple(ranked[:num_selected])
    found = {}
    for row in ranked:
        others = tuple(r for r in selected if r != row) if row in selected else selected[:-1]
        present = selected if row in selected else (*others, row)
        found[row] = Probe(Reading(question.question, answer, present), Reading(question.question, answer, others))
    return found


def solo_probes(question: Question, ranked: Sequence[int]) -> dict[int, Probe]:
    """What has to be read for the solo utility of each row."""
    answer = question.answers[0]
    nothing = Reading(question.question, answer, ())
    return {row: Probe(Reading(question.question, answer, (row,)), nothing) for row in ranked}


def utilities(of: Mapping[int, Probe], likelihoods: Mapping[Reading, Likelihood]) -> list[float]:
    """Utility of each probed row in nats, in their order."""
    return [likelihoods[probe.present].nats - likelihoods[probe.absent].nats for probe in of.values()]


def rank_correlation(scores: Sequence[float], utility: Sequence[float]) -> float | None:
    """Spearman's correlation; None where there are fewer than three candidates or all values of one side are equal."""
    if len(scores) < _FEWEST or np.ptp(scores) == 0 or np.ptp(utility) == 0:
        return None
    from scipy.stats import spearmanr  # a second, for what only some evaluations ask

    return float(spearmanr(scores, utility).statistic)


def aligned_rows(
    label: str,
    questions: Sequence[Question],
    rankings: Sequence[Rankings],
    lexical: Sequence[Rankings],
    readers: Mapping[str, Reader],
    num_selected: int,
    store: MemoryStore,
) -> dict[str, Row]:
    """Measures of alignment by question id, and `CANDIDATES` for pictures and tables.

    `alignment.WHO` and `alignment.WHO_solo`: correlation of the retriever's score with the utility that WHO measures;
    `…_lexical`: of BM25's score with the same utility.

    Args:
        label: of progress.
        questions: those to be measured, each with a pool.
        rankings: of their pools, with scores, by the retriever.
        lexical: the same by BM25.
        readers: what measures utility, by name.
        num_selected: K.
        store: whose titles are shown.
    """
    plans = [
        {"": probes(q, r.pool, num_selected), "_solo": solo_probes(q, r.pool)}
        for q, r in zip(questions, rankings, strict=True)
    ]
    wanted = [
        reading for plan in plans for of in plan.values() for p in of.values() for reading in (p.present, p.absent)
    ]
    measured = {}
    for who, reader in readers.items():
        title = f"{label}: utility, {who}"
        with Progress(reader.likelihood_tokens(wanted), title, " tokens", unit_scale=True) as bar:
            measured[who] = reader.likelihoods(wanted, bar.update)
    rows = {}
    for question, ranking, plan, common in zip(questions, rankings, plans, lexical, strict=True):
        words = dict(zip(common.pool, common.pool_scores, strict=True))
        lexical_scores = [words[row] for row in ranking.pool]
        row: Row = {}
        columns: dict[str, Sequence[Any]] = {"score": ranking.pool_scores, "lexical": lexical_scores}
        for who, likelihoods in measured.items():
            for kind, of in plan.items():
                utility = columns[f"{who}{kind}"] = utilities(of, likelihoods)
                row[f"alignment.{who}{kind}"] = rank_correlation(ranking.pool_scores, utility)
                row[f"alignment.{who}{kind}_lexical"] = rank_correlation(lexical_scores, utility)
        chunks = store.records(ranking.pool)
        columns["row_id"] = ranking.pool
        columns["document_id"] = [c.document_id for c in chunks]
        columns["title"] = [c.title or c.text[:60] for c in chunks]
        right = {row for document in question.positive_ids for row in store.rows_of(document)}
        columns["positive"] = [row_id in right for row_id in ranking.pool]
        row[CANDIDATES] = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows[question.question_id] = row
    return rows


@dataclass(frozen=True)
class Moved:
    """A document of a pool whose rank changed (0 is first): by words, in the first and in the last system."""

    question: str
    title: str
    positive: bool
    lexical_place: int
    before: int
    after: int
    utility: float
    text_utility: float


def moved_documents(before: Sequence[Row], after: Sequence[Row], most: int = 10) -> tuple[list[Moved], list[Moved]]:
    """Documents ranked lower although they share the question's words, and higher although they do not; largest first.

    Looking alike: in the first quarter of the pool by BM25. Not: in its second half. A question gives two of each at
    most, or one question whose pool is turned over would fill the table.
    """
    earlier = {row["question_id"]: row for row in before if row.get(CANDIDATES)}
    down, up = [], []
    for row in after:
        if not row.get(CANDIDATES) or row["question_id"] not in earlier:
            continue
        positions = {c["row_id"]: position for position, c in enumerate(earlier[row["question_id"]][CANDIDATES])}
        by_words = sorted(row[CANDIDATES], key=lambda c: -c["lexical"])
        lexical_places = {c["row_id"]: position for position, c in enumerate(by_words)}
        for position, c in enumerate(row[CANDIDATES]):
            lexical_place, earlier_place = lexical_places[c["row_id"]], positions.get(c["row_id"], position)
            moved = Moved(
                row["question"],
                c["title"],
                c["positive"],
                lexical_place,
                earlier_place,
                position,
                c[GENERATOR],
                c[TEXT],
            )
            if position > earlier_place and 4 * lexical_place < len(positions) and c["lexical"] > 0:
                down.append(moved)
            elif position < earlier_place and 2 * lexical_place >= len(positions):
                up.append(moved)
    return _furthest(down, most), _furthest(up, most)


def _furthest(moved: Sequence[Moved], most: int) -> list[Moved]:
    chosen: list[Moved] = []
    for one in sorted(moved, key=_distance):
        if sum(other.question == one.question for other in chosen) < _MOST_OF_A_QUESTION:
            chosen.append(one)
    return chosen[:most]


def _distance(moved: Moved) -> tuple[int, str, str]:
    return -abs(moved.after - moved.before), moved.question, moved.title
