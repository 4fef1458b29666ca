"""Tables of the evidence, one for each question that it answers."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clara.intervals import PairedTest
from infra.evidence.rows import (
    BASELINES,
    CHALLENGERS,
    F1,
    LIKELIHOOD,
    OPPONENTS,
    POOLS,
    RECALL,
    TOGETHER,
    chosen,
    compare,
    systems_of,
    table,
)
from training.evaluation.measures import Row, figures
from training.evaluation.tables import Table, shown

Tests = dict[tuple[str, str, str], PairedTest]
"""By pair of systems, split and measure."""
_GIVEN = ("right", "wrong", "none")
ALIGNMENTS = {
    "generator": "alignment.generator",
    "generator, solo": "alignment.generator_solo",
    "plain LM on text": "alignment.text",
    "plain LM on text, solo": "alignment.text_solo",
}
"""What measured a document's utility, and the measure. The plain LM never saw the training."""


def answer_table(rows: Sequence[Row]) -> Table:
    """The answers by what was read: all published pools together. F1 and exact match leave yes and no out."""
    lines = []
    readers = [(name, name, "pool") for name in systems_of(rows)]
    readers += [(f"memory of {name} documents" if name != "none" else "no document", "start", name) for name in _GIVEN]
    for base in BASELINES:
        readers.append((f"raw passages that {base} found (standard RAG)", f"text/{base}", "pool"))
    readers += [
        (f"raw {name} passages" if name != "none" else "plain LM, no document", "text/bm25", name) for name in _GIVEN
    ]
    for title, system, condition in readers:
        found = figures(chosen(rows, system, TOGETHER))
        names = (f"{condition}.log_likelihood", f"open.{condition}_f1", f"open.{condition}_exact_match")
        if names[0] in found:
            lines.append([title, *(shown(found[name], interval=True) if name in found else "" for name in names)])
    return ["read", "log-likelihood of the answer [nats]", "F1", "exact match"], lines


def tests(rows: Sequence[Row]) -> Tests:
    """Paired tests of the jointly trained systems against every other one."""
    there = systems_of(rows)
    found = {}
    for challenger, base, split, measure in itertools.product(
        CHALLENGERS, OPPONENTS, (TOGETHER, *POOLS), (RECALL, LIKELIHOOD, F1)
    ):
        if challenger in there and base in there and (test := compare(rows, challenger, base, split, measure)):
            found[f"{challenger} - {base}", split, measure] = test
    return found


def tests_table(found: Tests) -> Table:
    """Paired differences over all published pools together."""
    lines = [
        [
            pair,
            measure,
            f"{test.difference:+.3f}",
            f"[{test.low:+.3f}, {test.high:+.3f}]",
            f"{test.p_value:.4f}",
            str(test.num_questions),
        ]
        for (pair, split, measure), test in found.items()
        if split == TOGETHER
    ]
    return ["pair", "measure", "difference", "95 % interval", "p", "n"], lines


def tests_record(found: Tests) -> dict[str, dict[str, Any]]:
    """The tests as plain values."""
    return {", ".join(key): asdict(test) for key, test in found.items()}


def alignment_table(rows: Sequence[Row]) -> Table:
    """Utility alignment before and after, all published pools together.

    Rows `words` have BM25's score in place of the retriever's.
    """
    names = ALIGNMENTS | {
        "words, generator": "alignment.generator_lexical",
        "words, plain LM": "alignment.text_lexical",
    }
    return table(
        rows,
        [s for s in systems_of(rows) if s not in BASELINES],
        {title: (TOGETHER, name) for title, name in names.items()},
    )
