"""`clara serve --model models:/…`: the parts that a version was registered with, and how it answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from clara.errors import InputError
from clara.storage.manifest import manifest_hash
from clara.storage.paths import uri as uri_of
from clara.tracking.run_log import Run
from infra import cli
from tests.helpers.evaluation_world import World
from training.registry import served_model
from training.registry.registered_system import flags_of
from training.registry.store import open_run_log, open_store


@pytest.fixture(scope="module")
def memory(evaluation_artefacts: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MEMORY that a test may damage."""
    folder = tmp_path_factory.mktemp("registered") / "memory"
    shutil.copytree(evaluation_artefacts.memory, folder)
    return folder


@pytest.fixture(scope="module")
def store(
    evaluation_artefacts: World,
    memory: Path,
    tiny_backbone: Path,
    empty_store: Callable[[Path], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A store whose model `towns` has a version 1, alias `champion`, as `clara register` makes it."""
    world, uri = evaluation_artefacts, empty_store(tmp_path_factory.mktemp("store"))
    config = {
        "memory_uri": uri_of(memory),
        "memory_hash": manifest_hash(memory),
        "index_uri": uri_of(world.index),
        "index_hash": manifest_hash(world.index),
        "backbone_uri": uri_of(tiny_backbone),
        **{"device": "cpu", "num_selected": 3, "max_new_tokens": 7, "first_level": 50, "exact_rows": 20},
        "dense_settings": {"dense_size": 8},
    }
    client, log = open_store(uri), open_run_log(uri)
    log.begin(Run("tests", "register towns", {"made_by": "tests"}))
    with mlflow.start_run(run_id=log.run_id):
        model = mlflow.pyfunc.log_model(
            name="towns",
            python_model=served_model.code_path(),
            artifacts={served_model.CHECKPOINT: str(world.checkpoint)},
            model_config=config,
            pip_requirements=["mlflow"],
        )
    tags = {"clara.checkpoint_hash": manifest_hash(world.checkpoint)}
    mlflow.register_model(model.model_uri, "towns", tags=tags)
    client.set_registered_model_alias("towns", "champion", "1")
    return uri


def test_a_version_is_served_with_what_it_was_registered_with(
    store: str, evaluation_artefacts: World, memory: Path, tiny_backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flags_of("models:/towns@champion", store) == [
        f"--checkpoint={evaluation_artefacts.checkpoint}",
        f"--memory={memory}",
        f"--index={evaluation_artefacts.index}",
        f"--backbone={tiny_backbone}",
        *("--device=cpu", "--num-selected=3", "--max-new-tokens=7", "--first-level=50", "--exact-rows=20"),
        "--set=retrieval.dense_size=8",
    ]
    command = ["serve", "--model=models:/towns/1", f"--tracking-uri={store}", "--port=0", "--dry-run"]
    assert cli.main(command) == 0
    assert "80 rows, fits" in capsys.readouterr().out


def test_what_cannot_be_served_is_refused(store: str, memory: Path) -> None:
    for model, message in (
        ("towns", r"--model 'towns': expected models:/NAME@ALIAS"),
        ("models:/towns@challenger", r"towns has no alias challenger; it has champion"),
    ):
        with pytest.raises(InputError, match=message):
            flags_of(model, store)
    with pytest.raises(InputError, match="name the MLflow store with --tracking-uri"):
        cli.main(["serve", "--model=models:/towns@champion"])
    manifest = memory / "manifest.json"
    changed = json.loads(manifest.read_text(encoding="utf-8")) | {"tombstones": [1]}
    manifest.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(InputError, match="this MEMORY has manifest hash"):
        flags_of("models:/towns@champion", store)
    manifest.unlink()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        flags_of("models:/towns@champion", store)
