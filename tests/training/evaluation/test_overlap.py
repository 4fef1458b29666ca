"""What one of two systems finds and the other does not."""

import json
from pathlib import Path

from training.evaluation.overlap import overlaps
from training.evaluation.report import Evaluation, write_report


def row(system: str, number: int, recall: float | None, kind: str) -> dict[str, object]:
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


KINDS = ["cloze"] * 4 + ["natural", "cloze"]


def rows(system: str, *recalls: float | None) -> list[dict[str, object]]:
    """The rows of a system, a question each."""
    return [row(system, number, *of) for number, of in enumerate(zip(recalls, KINDS, strict=True))]


A = rows("a", 1.0, 0.5, 0.0, 0.0, 1.0, 1.0)
B = rows("b", 0.5, 0.0, 1.0, 0.0, 0.0, None)


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
