"""The claim in small: the answer's loss alone teaches retrieval where likeness misleads, and without its gradient nothing is learned."""

import json

import pytest

from infra import world


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_retrieval_learns_from_answers_alone(tmp_path):
    assert world.main(["--output", str(tmp_path), "--control"]) == 0
    (result,) = json.loads((tmp_path / "report.json").read_text())["worlds"]
    recall = {system: found["unseen"]["value"] for system, found in result["recall_at_1"].items()}
    assert recall["BM25"] <= 0.1
    assert recall["start"] <= 0.1
    assert recall["after"] >= 0.9
    assert abs(recall["control"] - recall["start"]) <= 0.1
