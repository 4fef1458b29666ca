"""Figures of rankings, likelihoods and answers: a row for each question and system; means; paired differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clara.arrays import Ids
from clara.data.questions import Question, target_of
from clara.errors import InputError
from clara.intervals import PairedTest, group_numbers, grouped_interval, paired_test
from clara.metrics import ANSWER_METRICS, ndcg, ranking_metrics
from training.evaluation.readers import Likelihood

CUTOFFS = (1, 3, 5, 20)
NDCG_AT = 10
CURVE_AT = tuple(range(1, 21))
GAPS = (("right", "wrong"), ("right", "none"), ("index", "none"))
"""Differences of log-likelihood: whether memory is read, whether it helps, whether what was retrieved helps."""
Row = dict[str, Any]


def retrieval_measures(
    where: str,
    rankings: Sequence[Sequence[str]],
    positives: Sequence[Sequence[str]],
    grades: Sequence[Sequence[float]] | None = None,
) -> list[Row]:
    """`WHERE.recall@k`, `.precision@k`, `.mrr@k`, `.mrr`, `.ndcg@10`, `WHERE_recall_curve` (at 1 to 20) of a question.

    A question that nothing was found for counts 0: left out, it would raise the mean of a retriever that finds nothing
    for it. Questions without a known positive have none of them. `grades` are those of the positives; None, or none of
    a question: all alike.

    Raises:
        InputError: the lengths differ, or a ranking names a document twice.
    """
    if len(rankings) != len(positives):
        raise InputError(f"{len(rankings)} rankings for {len(positives)} questions; expected one for each")
    chosen = [i for i, right in enumerate(positives) if right]
    values = ranking_metrics([rankings[i] for i in chosen], [positives[i] for i in chosen], CURVE_AT)
    weights = [(grades[i] if grades else ()) or [1.0] * len(positives[i]) for i in chosen]
    gains = [dict(zip(positives[i], own, strict=True)) for i, own in zip(chosen, weights, strict=True)]
    gained = ndcg([rankings[i] for i in chosen], gains, NDCG_AT)
    measures: list[Row] = [{} for _ in rankings]
    for position, i in enumerate(chosen):
        row = measures[i]
        for k in CUTOFFS:
            row[f"{where}.recall@{k}"] = float(values[f"recall@{k}"][position])
            row[f"{where}.precision@{k}"] = float(values[f"precision@{k}"][position])
            row[f"{where}.mrr@{k}"] = float(values[f"mrr@{k}"][position])
        row[f"{where}.mrr"] = float(values["mrr"][position])
        row[f"{where}.ndcg@{NDCG_AT}"] = float(gained[position])
        row[f"{where}_recall_curve"] = [float(values[f"recall@{k}"][position]) for k in CURVE_AT]
    return measures


def hop_measures(where: str, ranking: Sequence[str], question: Question, absent: int | None = None) -> dict[str, float]:
    """`WHERE.first_hop_rank` and `.bridging_rank`: mean rank (1 is first) of the first paragraphs and of later ones.

    Questions without both kinds have neither measure; nor have those with a paragraph that is not ranked, unless
    `absent` gives its rank.
    """
    rank = {document: position for position, document in enumerate(ranking, 1)}
    hops = dict(zip(question.positive_ids, question.positive_hops, strict=False))
    kinds = {
        "first_hop": [d for d, hop in hops.items() if hop == 1],
        "bridging": [d for d, hop in hops.items() if hop > 1],
    }
    ranks = {kind: [rank.get(document, absent) for document in documents] for kind, documents in kinds.items()}
    known = {kind: [r for r in of if r is not None] for kind, of in ranks.items()}
    if not all(kinds.values()) or known != ranks:
        return {}
    return {f"{where}.{kind}_rank": sum(of) / len(of) for kind, of in known.items()}


def likelihood_measures(likelihoods: Mapping[str, Likelihood]) -> dict[str, float]:
    """`CONDITION.log_likelihood` (nats an answer), `…_per_token`, and the gaps between conditions (nats an answer)."""
    measures = {}
    for condition, likelihood in likelihoods.items():
        measures[f"{condition}.log_likelihood"] = likelihood.nats
        measures[f"{condition}.log_likelihood_per_token"] = likelihood.per_token
    for better, worse in GAPS:
        if better in likelihoods and worse in likelihoods:
            measures[f"gap.{better}_minus_{worse}"] = likelihoods[better].nats - likelihoods[worse].nats
    return measures


def answer_measures(condition: str, text: str, question: Question) -> dict[str, float]:
    """`CONDITION.exact_match`, `.f1`, `.cover_match` and `.substring_match`: the best over all accepted wordings."""
    return {f"{condition}.{name}": measure(text, question.answers) for name, measure in ANSWER_METRICS.items()}


@dataclass(frozen=True)
class Figure:
    """A mean over questions with its 95 % bootstrap interval, and how many questions it is over."""

    value: float
    low: float
    high: float
    num_questions: int


def is_number(value: Any) -> bool:
    """Whether a row has this measure."""
    return isinstance(value, float) and math.isfinite(value)


def measure_names(rows: Iterable[Row]) -> list[str]:
    """Names of measures in rows, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if "." in name and is_number(value)))


def _targets(rows: Sequence[Row]) -> Ids | None:
    """Number of each row's target; rows of one are resampled together. None if no two rows share one."""
    numbers = group_numbers(target_of(row["question_id"], row.get("positive_ids") or ()) for row in rows)
    return None if len(np.unique(numbers)) == len(rows) else numbers


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Figure]:
    """The mean of every measure over the rows that have it; the intervals resample targets."""
    found = {}
    for name in measure_names(rows):
        measured = [row for row in rows if is_number(row.get(name))]
        values = [row[name] for row in measured]
        interval = grouped_interval(values, _targets(measured), seed)
        found[name] = Figure(sum(values) / len(values), *interval, len(values))
    return found


def differences(challenger: Sequence[Row], base: Sequence[Row], seed: int = 0) -> dict[str, PairedTest]:
    """Every measure's paired difference, challenger minus base, over the questions that both have, see `figures`."""
    by_question = {row["question_id"]: row for row in base}
    pairs = [(row, by_question[row["question_id"]]) for row in challenger if row["question_id"] in by_question]
    found = {}
    for name in measure_names(challenger):
        both = [(a, b) for a, b in pairs if is_number(a.get(name)) and is_number(b.get(name))]
        # One question has no permutation but its own: nothing can be said of it.
        if len(both) > 1:
            groups = _targets([a for a, _ in both])
            found[name] = paired_test([a[name] for a, _ in both], [b[name] for _, b in both], seed, groups=groups)
    return found
