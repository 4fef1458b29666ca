"""The demo's closing table is what the evaluation's report says, on the terminal and as Markdown."""

import json
from pathlib import Path

import pytest

from clara.errors import InputError
from infra import summary


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "num_questions": 7}


REPORT = {
    "systems": {
        "before": {"unseen": {"index.recall@1": figure(0.25), "gap.right_minus_wrong": figure(3.0)}},
        "after": {"unseen": {"index.recall@1": figure(0.5)}},
        "another": {"unseen": {"index.recall@1": figure(0.9)}},
    },
    "differences": {
        "unseen": {
            "after - before": {
                "pool.recall@5": {"difference": 0.2, "low": 0.1, "high": 0.3, "p_value": 0.04, "num_questions": 7}
            }
        }
    },
}


def test_a_row_for_each_measure_that_there_is_and_a_column_for_each_system() -> None:
    head, rows = summary.table(REPORT, "unseen")
    assert head == ["", "before", "after, re-encoded"]
    assert rows == [
        ["Recall@1, all documents", "0.25 [0.15, 0.35]", "0.50 [0.40, 0.60]"],
        ["right - wrong", "3.00 [2.90, 3.10]", ""],
    ]


def test_the_screen_has_one_number_a_row() -> None:
    systems = {
        "bm25/after": {"unseen": {"index.recall@5": figure(0.4)}},
        "long": {"unseen": {"index.recall@5": figure(0.5), "index.exact_match": figure(0.25)}},
    }
    lines = summary.screen({"systems": systems}, "unseen").splitlines()
    assert [line[53:] for line in lines] == [
        f"{v:.2f} [{v - 0.1:.2f}, {v + 0.1:.2f}], 7 questions" for v in (0.4, 0.5, 0.25)
    ]
    assert lines[0].startswith("finds the document, first five of all: BM25 ")


def test_terminal_and_markdown_show_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    said = []
    for options in ([], ["--markdown"]):
        assert summary.main([str(tmp_path), *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("7 held-out questions (unseen)")
    assert "| Recall@1, all documents | 0.25 [0.15, 0.35] | 0.50 [0.40, 0.60] |" in said[1]
    for line in said:
        assert "Recall@5, pool of 20 +0.20 [+0.10, +0.30], p = 0.04" in line


def test_a_missing_report_or_split_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no report\.json there"):
        summary.read(tmp_path)
    with pytest.raises(InputError, match="--split 'seen': the report has unseen"):
        summary.table(REPORT, "seen")
