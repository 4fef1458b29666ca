"""The whole-corpus table: rankings by weighted sums, and intervals that resample targets."""

import json

import numpy as np
import pytest

from benchmarks.whole_corpus.command import main
from benchmarks.whole_corpus.measure import Scores, difference
from benchmarks.whole_corpus.report import fixed_sums
from clara.data.questions import Question


def scores() -> Scores:
    """Two questions over four rows of three documents; two features that disagree."""
    questions = [
        Question("a", "a?", ("x",), ("d1",)),
        Question("b", "b?", ("x",), ("d2", "d3")),
    ]
    features = np.array([[[4, 0], [3, 0], [2, 9], [1, 8]], [[1, 1], [2, 4], [3, 3], [4, 2]]], np.float32)
    allowed = np.array([[True] * 4, [False, True, True, True]])
    return Scores(questions, features, allowed, ["d1", "d1", "d2", "d3"])


def test_documents_are_ranked_by_their_best_row_and_excluded_rows_are_not() -> None:
    by_first, by_second = scores().measures([1.0, 0.0]), scores().measures([0.0, 1.0])
    assert by_first["recall@1"].tolist() == [1.0, 0.5]  # d3 is first of two
    assert by_first["recall@5"].tolist() == [1.0, 1.0]
    assert by_second["mrr"].tolist() == pytest.approx([1 / 3, 1 / 2])  # d1 is first: its other row is not excluded
    assert scores().measures([0.0, 1.0])["recall@1"].tolist() == [0.0, 0.0]


def test_questions_of_one_target_are_drawn_together() -> None:
    a, b = np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.zeros(5)
    mean, low, high = difference(a, b, np.array([0, 0, 0, 1, 2]))
    assert mean == pytest.approx(0.6)
    assert (low, high) == (0.0, 1.0)  # only the first target, or only others
    assert difference(a, a, np.array([0, 0, 0, 1, 2])) == (0.0, 0.0, 0.0)


def test_weights_of_fixed_sums_are_written_as_numbers() -> None:
    weights = json.loads(json.dumps(fixed_sums(scores())))
    deviation = float(scores().features[..., 1].std())
    assert weights["bm25 / its deviation + 20 dense"] == [0.0, pytest.approx(1 / deviation), 20.0]
    assert weights["memory"] == [1.0, 0.0, 0.0]


def test_the_commands_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dense-model", "MODEL", "--data", "DATA", "--dtype", "float32", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("training.fit_score" in line for line in lines) == 12
    assert any("--features bm25,dense" in line for line in lines)
