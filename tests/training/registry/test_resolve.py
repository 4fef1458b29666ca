"""`models:/` names as CHECKPOINT: which folder a command reads, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from clara import ask
from clara.errors import InputError
from clara.storage.cache import CACHE
from clara.storage.manifest import manifest_hash
from clara.tracking.run_log import Run
from infra import cli
from tests.helpers.artefacts import verify
from tests.helpers.joint_world import World
from training import evaluate, joint, pretrain
from training.registry import served_model
from training.registry.registered_system import flags_of
from training.registry.resolve import local_checkpoint
from training.registry.store import open_run_log, open_store


@dataclass(frozen=True)
class Store:
    """A store with model `towns`.

    Version 1, alias `champion`, was registered from `checkpoint`; the tags of 2 have another hash; those of 3 none.
    """

    uri: str
    checkpoint: Path
    artefacts: Path


@pytest.fixture(scope="module")
def store(tiny_checkpoint: Path, empty_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    checkpoint = folder / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    uri = empty_store(folder)
    client, log = open_store(uri), open_run_log(uri)
    log.begin(Run("tests", "register towns", {"made_by": "tests"}))
    with mlflow.start_run(run_id=log.run_id):
        model = mlflow.pyfunc.log_model(
            name="towns",
            python_model=served_model.code_path(),
            artifacts={served_model.CHECKPOINT: str(checkpoint)},
            pip_requirements=["mlflow"],
        )
    for expected in (manifest_hash(checkpoint), "0" * 64, None):
        tags = {"clara.checkpoint_hash": expected} if expected else {}
        mlflow.register_model(model.model_uri, "towns", tags=tags)
    client.set_registered_model_alias("towns", "champion", "1")
    return Store(uri, checkpoint, folder / "mlartifacts")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_other_names_stay_and_need_no_store() -> None:
    for name in ("", "RUN/checkpoint", "s3://bucket/checkpoint"):
        assert local_checkpoint(name, "") == name


def test_a_version_without_pointers_cannot_be_served(store: Store) -> None:
    with pytest.raises(InputError, match="this version names no MEMORY; register it with clara register"):
        flags_of("models:/towns@champion", store.uri)


@pytest.mark.parametrize("name", ["models:/towns@champion", "models:/towns/1"])
def test_the_registered_folder_is_used_while_it_is_the_same(store: Store, cache: Path, name: str) -> None:
    assert local_checkpoint(name, store.uri) == str(store.checkpoint)
    assert not cache.exists()


def test_without_that_folder_the_checkpoint_is_downloaded_once(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, moved = manifest_hash(store.checkpoint), store.checkpoint.with_name("moved")
    store.checkpoint.rename(moved)
    try:
        copy = Path(local_checkpoint("models:/towns@champion", store.uri))
        assert copy.parent.parent == cache
        assert manifest_hash(copy) == expected
        verify(copy, "CHECKPOINT")
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", None)
        assert local_checkpoint("models:/towns/1", store.uri) == str(copy)
    finally:
        moved.rename(store.checkpoint)


@pytest.mark.parametrize("damage", ["file", "manifest", "folder"])
def test_a_damaged_download_is_refused(store: Store, cache: Path, damage: str) -> None:
    (held,) = store.artefacts.rglob("artifacts/checkpoint")
    whole = held.with_name("whole")
    moved = store.checkpoint.rename(store.checkpoint.with_name("moved"))
    shutil.copytree(held, whole)
    try:
        if damage == "file":
            (weights,) = held.rglob("memory_tokens.safetensors")
            weights.write_bytes(bytes(weights.stat().st_size))
        elif damage == "manifest":
            (held / "manifest.json").unlink()
        else:
            shutil.rmtree(held)
        with pytest.raises(InputError, match="no CHECKPOINT can be read from version 1"):
            local_checkpoint("models:/towns@champion", store.uri)
        assert not list(cache.glob("registered/*[0-9a-f]/manifest.json"))
    finally:
        shutil.rmtree(held, ignore_errors=True)
        whole.rename(held)
        moved.rename(store.checkpoint)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("models:/villages@champion", "no version of model villages is registered; the store has towns"),
        ("models:/towns@best", "towns has no alias best; it has champion, and versions 1, 2, 3"),
        ("models:/towns/7", "towns has no version 7; it has 1, 2, 3"),
        ("models:/towns/2", "manifest hash .*…, 0000000000000000… was registered"),
        ("models:/towns/3", "version 3 has no tag clara.checkpoint_hash"),
        ("models:/towns", "expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_is_refused(store: Store, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        local_checkpoint(name, store.uri)
    assert "\n" not in str(refused.value)


def test_a_store_that_is_not_set_or_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri is empty"):
        local_checkpoint("models:/towns/1", "")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be opened") as refused:
        local_checkpoint("models:/towns/1", f"sqlite:///{tmp_path}/file/mlflow.db")
    assert "\n" not in str(refused.value)


def test_the_commands_that_take_such_a_name(
    store: Store, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, expected = "models:/towns@champion", manifest_hash(store.checkpoint)
    system = f"after={name},{world.memory},{world.index}"
    common = ["--questions", str(world.questions), "--output", str(tmp_path / "evaluation"), "--dry-run"]
    splits = ["--splits", "all", "--system", system, "--tracking-uri", store.uri]
    capsys.readouterr()
    assert evaluate.main([*common, *splits]) == 0
    assert json.loads(capsys.readouterr().out)["systems"]["after"]["checkpoint"] == expected

    sets = world.sets(tmp_path / "run", checkpoint=name, **{"tracking.uri": store.uri})
    assert joint.main(["--dry-run", *sets]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"]["checkpoint"] == expected

    of_stage = ["stage=instruct", f"checkpoint={name}", f"output={tmp_path}/run", f"tracking.uri={store.uri}"]
    assert pretrain.main(["--dry-run", *(part for value in of_stage for part in ("--set", value))]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == str(store.checkpoint)

    asked = ["--checkpoint", name, "--memory", str(world.memory), "--tracking-uri", store.uri, "--dry-run"]
    assert cli.main(["ask", *asked]) == 0
    assert f"fits {name}" in capsys.readouterr().out
    with pytest.raises(InputError, match="registered models are resolved by the command clara"):
        ask.main(asked)
