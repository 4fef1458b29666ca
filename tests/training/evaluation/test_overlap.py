"""What one of two systems finds and the other does not."""

import json
from pathlib import Path

from training.evaluation.overlap import overlaps
from training.evaluation.report import Evaluation, write_report


def row(system: str, number: int, recall: float | None, kind: str = "cloze") -> dict[str, object]:
    """One question of one system; no recall: it was not searched for."""
    found = {} if recall is None else {"index.recall@5": recall}
    return {
        "system": system,
        "split": "unseen",
        "kind": kind,
        "question_id": str(number),
        "positive_ids": ["d"],
        **found,
    }


A = [
    row("a", 0, 1.0),
    row("a", 1, 0.5),
    row("a", 2, 0.0),
    row("a", 3, 0.0),
    row("a", 4, 1.0, "natural"),
    row("a", 5, 1.0),
]
B = [
    row("b", 0, 0.5),
    row("b", 1, 0.0),
    row("b", 2, 1.0),
    row("b", 3, 0.0),
    row("b", 4, 0.0, "natural"),
    row("b", 5, None),
]


def test_each_question_that_both_were_asked_is_in_one_group_of_its_kind() -> None:
    cloze, natural = overlaps(A, B)
    assert (cloze.both, cloze.first, cloze.second, cloze.neither) == (1, ["1"], ["2"], 1)
    assert (natural.kind, natural.first) == ("natural", ["4"])
    assert (natural.both, natural.second, natural.neither) == (0, [], 0)
    for kind, turned in zip(overlaps(A, B), overlaps(B, A), strict=True):
        assert (kind.first, kind.second, kind.both) == (turned.second, turned.first, turned.both)


def test_the_report_has_a_table_of_it_and_the_ids(tmp_path: Path) -> None:
    write_report(tmp_path, Evaluation([*A, *B], [("a", "b"), ("a", "a")], {}))
    text = (tmp_path / "report.md").read_text()
    assert "| a - b | cloze | 1 | 1 | 1 | 1 |\n| a - b | natural | 0 | 1 | 0 | 0 |" in text
    assert "| a - a | cloze |" not in text  # it differs in nothing
    found = json.loads((tmp_path / "report.json").read_text())["overlaps"]["unseen"]["a - b"]
    assert found[0]["second"] == ["2"]
