"""Figures of each kind of question, where a split has several."""

import json
from pathlib import Path

from training.evaluation.report import Evaluation, write_report


def rows(kinds: list[str]) -> list[dict[str, object]]:
    """Two systems; the second question of a pair is found by the second system alone."""
    return [
        {
            "system": s,
            "split": "unseen",
            "kind": kind,
            "question_id": str(i),
            "index.mrr": float(s == "b" or i % 2 == 0),
        }
        for s in "ab"
        for i, kind in enumerate(kinds)
    ]


def test_each_kind_has_its_own_figures_and_table(tmp_path: Path) -> None:
    evaluation = Evaluation(rows(["cloze", "cloze", "natural", "cloze"]), (), {})
    kinds = evaluation.kinds("unseen")
    assert {k: {s: round(f["index.mrr"].value, 3) for s, f in of.items()} for k, of in kinds.items()} == {
        "cloze": {"a": 0.333, "b": 1.0},
        "natural": {"a": 1.0, "b": 1.0},
    }
    assert kinds["cloze"]["a"]["index.mrr"].num_questions == 3
    write_report(tmp_path, evaluation)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kinds"]["unseen"]["cloze"]["b"]["index.mrr"]["value"] == 1.0
    text = (tmp_path / "report.md").read_text()
    assert "Questions of kind natural:\n\n| system | n | MRR |\n| --- | --- | --- |\n| a | 1 | 1.000" in text


def test_one_kind_alone_has_no_table_of_its_own(tmp_path: Path) -> None:
    assert Evaluation(rows(["cloze", "cloze"]), (), {}).kinds("unseen") == {}
