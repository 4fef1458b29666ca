"""A report as plain values: the rows of an EVALUATION, seconds and bytes measured beside it, and what follows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from clara.index.dense_model import open_encoder
from clara.intervals import grouped_interval
from clara.storage.manifest import hash_of
from infra.hardware import processor
from infra.report import advice
from infra.report.measure import Clock, Timed, median_and_p95, parts_of, rankers_of, sizes
from infra.report.ways import SYSTEM, Way, ways_of
from training.evaluate import Planned
from training.evaluation.checks import retrieval_of
from training.evaluation.files import PER_QUESTION
from training.evaluation.measures import is_number
from training.evaluation.systems import open_system
from training.registry.evaluated import target_numbers

Values = dict[str, dict[str, dict[str, float]]]
"""Way → measure → question id → value."""


def values_of(rows: Sequence[Mapping[str, Any]], ways: Mapping[str, Way], measures: Mapping[str, str]) -> Values:
    """What an EVALUATION's rows say of each way."""
    return {
        label: {
            measure: {r["question_id"]: r[measure] for r in rows if r["system"] == label and is_number(r.get(measure))}
            for measure in measures.values()
        }
        for label in ways
    }


def report_of(plan: Planned, measures: Mapping[str, str], *, deciding: str, num_timed: int) -> dict[str, Any]:
    """Read the EVALUATION, measure seconds and bytes, and compare.

    Args:
        plan: the evaluation, which is done.
        measures: names by heading.
        deciding: heading of the one that the recommendation compares.
        num_timed: questions that are timed.

    Raises:
        InputError: an artefact is damaged.
    """
    config, section = plan.config, plan.config.evaluation
    ways = ways_of(dense="dense" in section.baselines)
    rows = pq.read_table(Path(config.output) / PER_QUESTION).to_pylist()
    values = values_of(rows, ways, measures)
    asked = {q.question_id: (q.question, q.answers, q.positive_ids) for q in plan.questions}
    targets = dict(zip(asked, target_numbers(asked, list(asked)).tolist(), strict=True))
    timed, found, num_bytes, num_rows = _measured(plan, ways, num_timed)
    seconds = {label: [one.answer[label] for one in timed] for label in ways}
    decided = {label: of[measures[deciding]] for label, of in values.items()}
    recommended = advice.recommend(decided, targets, seconds, num_bytes, config.seed)
    titles = {label: way.title for label, way in ways.items()}
    return {
        "questions": {
            "count": len(plan.questions),
            "timed": len(timed),
            "splits": Counter(q.split for q in plan.questions),
        },
        "rows": num_rows,
        "settings": {name: getattr(section, name) for name in ("num_selected", "max_new_tokens")},
        "hardware": processor() if config.device == "cpu" else f"{processor()} and {config.device}",
        "measures": {head: measure for head, measure in measures.items() if any(of[measure] for of in values.values())},
        "ways": {
            label: {
                "title": way.title,
                "finder": way.finder,
                "reader": way.reader,
                "quality": _quality(values[label], targets, config.seed),
                **_speed(label, way, timed, config.seed),
                "bytes": num_bytes[label],
            }
            for label, way in ways.items()
        },
        "differences": {
            label: _differences(values[SYSTEM], values[label], targets, config.seed)
            for label in ways
            if label != SYSTEM
        },
        "bytes": found,
        "recommendation": asdict(recommended)
        | {
            "title": titles[recommended.choice],
            "measure": deciding,
            "reasons": advice.reasons(recommended, titles, deciding, len(timed)),
            "rule": advice.RULE,
        },
    }


def _measured(
    plan: Planned, ways: Mapping[str, Way], num_timed: int
) -> tuple[list[Timed], dict[str, int], dict[str, int], int]:
    """Questions that are timed, bytes by part of the system, bytes by way, and the rows of MEMORY."""
    config, section = plan.config, plan.config.evaluation
    retrieval = retrieval_of(config)
    encoder = open_encoder(retrieval, config.device) if "dense" in section.baselines else None
    paths = plan.systems[0]
    retriever = open_system(paths, config.backbone.path, accept_stale=False, device=config.device, retrieval=retrieval)
    rankers = rankers_of(retriever, {way.finder for way in ways.values()}, encoder)
    clock = Clock(retriever, rankers, ways, section.num_selected, section.max_new_tokens)
    # Those whose ids hash lowest, so that a larger number only adds.
    timed = clock.all(sorted(plan.questions, key=lambda q: hash_of(["timed", q.question_id]))[:num_timed])
    found = sizes(retriever, rankers)
    num_bytes = {label: sum(found.get(part, 0) for part in parts_of(way, retriever)) for label, way in ways.items()}
    return timed, found, num_bytes, len(retriever.store)


def _speed(label: str, way: Way, timed: Sequence[Timed], seed: int) -> dict[str, Any]:
    """Seconds of searching and answering, the ratio of the latter to the system's, and the tokens that are read."""
    answers = [one.answer[label] for one in timed]
    of_system = [one.answer[SYSTEM] for one in timed]
    return {
        "seconds": {
            "search": median_and_p95([one.search[way.finder] for one in timed]),
            "answer": median_and_p95(answers),
        },
        "ratio_to_system": None if label == SYSTEM else asdict(advice.ratio(answers, of_system, seed)),
        "tokens_read": float(np.mean([one.tokens[label] for one in timed])),
    }


def _quality(of: Mapping[str, Mapping[str, float]], targets: Mapping[str, int], seed: int) -> dict[str, Any]:
    found = {}
    for measure, values in of.items():
        if values:
            _, groups = np.unique([targets[name] for name in values], return_inverse=True)
            low, high = grouped_interval(list(values.values()), groups, seed)
            mean = sum(values.values()) / len(values)
            found[measure] = {"value": mean, "low": low, "high": high, "num_questions": len(values)}
    return found


def _differences(
    system: Mapping[str, Mapping[str, float]],
    other: Mapping[str, Mapping[str, float]],
    targets: Mapping[str, int],
    seed: int,
) -> dict[str, Any]:
    tests = {m: advice.paired(values, other[m], targets, seed) for m, values in system.items()}
    return {m: asdict(test) | {"verdict": advice.verdict(test)} for m, test in tests.items() if test is not None}
