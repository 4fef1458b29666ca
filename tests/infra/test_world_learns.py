"""The claim on a small world: the answer loss alone teaches retrieval; without its gradient nothing does."""

import json

import pytest

from infra import world


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_retrieval_learns_from_answers_alone(tmp_path):
    assert world.main(["--output", str(tmp_path), "--control", "--shuffled"]) == 0
    (result,) = json.loads((tmp_path / "report.json").read_text())["worlds"]
    recall = {system: found["unseen"]["value"] for system, found in result["recall_at_1"].items()}
    assert recall["BM25"] <= 0.1
    assert recall["start"] <= 0.1
    assert recall["after"] >= 0.9
    for control in ("control", "shuffled"):
        assert abs(recall[control] - recall["start"]) <= 0.1
    # Wordings never seen are reported apart, and have no floor.
    assert set(recall) == {"BM25", "start", "after", "control", "shuffled"}
    for found in result["recall_at_1"].values():
        assert set(found) == {"unseen", "unseen_wording"}
        assert found["unseen_wording"]["num_questions"] >= 100
    assert "new names in new wordings" in (tmp_path / "report.md").read_text()
