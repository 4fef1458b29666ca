"""The claim on a small world: the answer loss alone teaches retrieval; without its gradient nothing does."""

import json
from pathlib import Path

import pytest

from infra import world


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "controls",
    [
        pytest.param(("control",), marks=pytest.mark.slow),
        pytest.param(("control", "shuffled"), marks=pytest.mark.release),
    ],
    ids="-".join,
)
def test_retrieval_learns_from_answers_alone(tmp_path: Path, controls: tuple[str, ...]) -> None:
    assert world.main(["--output", str(tmp_path), *(f"--{name}" for name in controls)]) == 0
    (result,) = json.loads((tmp_path / "report.json").read_text())["worlds"]
    recall = {system: found["unseen"]["value"] for system, found in result["recall_at_1"].items()}
    assert recall["BM25"] <= 0.1
    assert recall["start"] <= 0.1
    assert recall["after"] >= 0.9
    for control in controls:
        assert abs(recall[control] - recall["start"]) <= 0.1
    # Wordings never seen are reported apart, and have no floor.
    assert set(recall) == {"BM25", "start", "after", *controls}
    for found in result["recall_at_1"].values():
        assert set(found) == {"unseen", "unseen_wording"}
        assert found["unseen_wording"]["num_questions"] >= 100
    assert "new names in new wordings" in (tmp_path / "report.md").read_text()
