"""The model card: read from the artefacts and the evaluation, and registered with the version."""

import json
from pathlib import Path

import mlflow
import pytest

from clara.errors import InputError
from tests.helpers.evaluation_world import World
from tests.helpers.registry import MODEL, evaluation, own_world, registration, store, world
from training import register
from training.registry.card import _stated
from training.registry.registration import CARD

__all__ = ["evaluation", "own_world", "store", "world"]  # fixtures


def test_a_version_has_a_card(own_world: World, evaluation: Path, store: str) -> None:
    given = registration(own_world, evaluation, store, "after")
    with pytest.raises(InputError, match="--licence 'corpus': expected PART=TEXT"):
        register.main([*given, "--licence", "corpus"])
    assert register.main([*given, "--licence", "corpus=CC0-1.0", "--licence", "pictures=none"]) == 0
    client = mlflow.MlflowClient(store)
    version = client.get_model_version(MODEL, "1")
    assert CARD in version.description
    text = Path(client.download_artifacts(version.run_id, CARD)).read_text(encoding="utf-8")
    assert text.startswith(f"# {MODEL}\n")
    for heading in ("Data", "Licences", "Measures", "Limits"):
        assert f"\n## {heading}\n" in text
    for line in ("* corpus: CC0-1.0", "* questions: not stated", "* language model: not stated", "* pictures: none"):
        assert line in text.splitlines()
    figure = json.loads((evaluation / "report.json").read_text())["systems"]["after"]["unseen"]["index.recall@5"]
    assert f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in text
    assert "answers in 4 tokens at most" in text


def test_the_licence_of_a_model_is_read_from_its_folder(tmp_path: Path) -> None:
    assert _stated(tmp_path / "none") == _stated(tmp_path) == "not stated"
    (tmp_path / "LICENSE.txt").write_text("…")
    assert _stated(tmp_path) == "see LICENSE.txt in its folder"
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    assert _stated(tmp_path) == "apache-2.0"
