"""Metrics of answers and of rankings, one value a question."""

import re
import string
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clara.errors import InputError

Values = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# As the published CLaRa reads what a model may say in a programmer's words.
_BOOLEANS = {"True": "yes", "False": "no"}
# Answers that are right or wrong as a whole: "yes it is" shares no credit with "yes".
_CLOSED = frozenset({"yes", "no", "noanswer"})


# --- answers ---------------------------------------------------------------------------------------------------------


def normalise_answer(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation or articles, single spaces; `True` is yes, `False` no."""
    return " ".join(_ARTICLES.sub(" ", _BOOLEANS.get(text, text).lower().translate(_PUNCTUATION)).split())


def _exact(prediction: str, answer: str) -> float:
    return float(prediction == answer)


def _f1(prediction: str, answer: str) -> float:
    if prediction != answer and (prediction in _CLOSED or answer in _CLOSED):
        return 0.0
    ours, theirs = prediction.split(), answer.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _cover(prediction: str, answer: str) -> float:
    return float(set(answer.split()) <= set(prediction.split()))


def _substring(prediction: str, answer: str) -> float:
    return float(f" {answer} " in f" {prediction} ")


def _best(measure: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The best value over an answer's wordings, all in normal form."""
    if isinstance(answers, str) or not answers:
        raise InputError(f"answers are {answers!r}; expected a list of at least one accepted wording")
    normal = normalise_answer(prediction)
    return max(measure(normal, normalise_answer(answer)) for answer in answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where the normal forms are equal, for the best of the wordings; else 0."""
    return _best(_exact, prediction, answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Word F1 with the best wording; 0 if only one of prediction and wording is yes, no or noanswer."""
    return _best(_f1, prediction, answers)


def cover_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction contains every word of a wording, in any order; the accuracy of the published CLaRa."""
    return _best(_cover, prediction, answers)


def substring_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where a wording occurs in the prediction as a run of whole words; stricter than `cover_match`."""
    return _best(_substring, prediction, answers)


ANSWER_METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "cover_match": cover_match,
    "substring_match": substring_match,
}


def answer_metrics(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, Values]:
    """Every answer metric by name, `[questions]` each."""
    if len(predictions) != len(answers):
        raise InputError(f"{len(predictions)} predictions for {len(answers)} questions; expected one for each")
    pairs = list(zip(predictions, answers, strict=True))
    return {name: np.array([measure(p, a) for p, a in pairs], np.float64) for name, measure in ANSWER_METRICS.items()}


# --- rankings --------------------------------------------------------------------------------------------------------


def ranking_metrics(
    rankings: Sequence[Sequence[Hashable]],
    positives: Sequence[Collection[Hashable]],
    cutoffs: Sequence[int] = (1, 5, 20),
) -> dict[str, Values]:
    """`recall@k`, `precision@k` and `mrr@k` for each cut-off, and `mrr` over the whole ranking, `[questions]` each.

    Recall: share of the right documents among the first k. Precision: share of right ones among k places, empty ones
    too. Reciprocal rank: 1 / place of the first right one, 0 where there is none (or none among the first k).

    Args:
        rankings: document ids, best first, each once.
        positives: right ids, at least one a question.
        cutoffs: the k, each at least 1.

    Raises:
        InputError: the lengths differ, a cut-off is under 1, a question has no positive, or a ranking names a document
            twice.
    """
    if len(rankings) != len(positives):
        raise InputError(f"{len(rankings)} rankings for {len(positives)} questions; expected one for each")
    if any(k < 1 for k in cutoffs):
        raise InputError(f"cutoffs are {list(cutoffs)}; expected each at least 1")
    names = [f"{measure}@{k}" for k in cutoffs for measure in ("recall", "precision", "mrr")]
    values = {name: np.zeros(len(rankings)) for name in [*names, "mrr"]}
    for number, (ranking, positive) in enumerate(zip(rankings, positives, strict=True)):
        right = set(positive)
        if not right:
            raise InputError(f"question {number}: no positive document, so recall is undefined; leave it out")
        if len(set(ranking)) != len(ranking):
            raise InputError(f"question {number}: a document occurs twice in its ranking; keep its best place only")
        positions = [position for position, document in enumerate(ranking, 1) if document in right]
        for k in cutoffs:
            hits = sum(position <= k for position in positions)
            values[f"recall@{k}"][number] = hits / len(right)
            values[f"precision@{k}"][number] = hits / k
            values[f"mrr@{k}"][number] = 1 / positions[0] if hits else 0.0
        values["mrr"][number] = 1 / positions[0] if positions else 0.0
    return values


def ndcg(rankings: Sequence[Sequence[Hashable]], gains: Sequence[Mapping[Any, float]], cutoff: int) -> Values:
    """Normalised discounted cumulative gain among the first documents of each ranking, `[questions]`.

    The sum of gain / log2(1 + place) over the first `cutoff` places, divided by that of the best ranking there is. The
    gain of a document is its grade, as in trec_eval and BEIR.

    Args:
        rankings: document ids, best first, each once.
        gains: grade above 0 of each right document; others have 0.
        cutoff: places that count, at least 1.

    Raises:
        InputError: the lengths differ, or a question has no right document.
    """
    if len(rankings) != len(gains):
        raise InputError(f"{len(rankings)} rankings for {len(gains)} questions; expected one for each")
    discounts = 1 / np.log2(np.arange(2, cutoff + 2))
    values = np.zeros(len(rankings))
    for number, (ranking, grades) in enumerate(zip(rankings, gains, strict=True)):
        if not grades:
            raise InputError(f"question {number}: no positive document, so nDCG is undefined; leave it out")
        best = np.sort([*grades.values()])[::-1][:cutoff]
        found = [grades.get(document, 0.0) for document in ranking[:cutoff]]
        values[number] = discounts[: len(found)] @ found / (discounts[: len(best)] @ best)
    return values
