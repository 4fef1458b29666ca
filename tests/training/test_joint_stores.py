"""Joint training, evaluation and registration on a bucket equal those on a disk."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.storage.cache import CACHE
from clara.storage.manifest import manifest_hash, read_manifest
from clara.storage.transfer import published
from tests.helpers import stores
from tests.helpers.joint_world import World
from training import evaluate, joint, register
from training.launch.search_servers import SearchServer
from training.launch.served_index import ServedIndex, served
from training.registry.served_model import pointed


@pytest.fixture(scope="module")
def bucket(world: World) -> Iterator[stores.Store]:
    """A store that holds the world."""
    with stores.running("s3") as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        stores.forget_clients()
        for name in ("checkpoint", "memory", "index", "questions"):
            with published(f"{store.url}/{name}") as folder:
                shutil.copytree(getattr(world, name), folder, dirs_exist_ok=True)
        yield store


@pytest.fixture
def urls(bucket: stores.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    return {name: f"{bucket.url}/{name}" for name in ("checkpoint", "memory", "index", "questions")}


def test_from_training_to_a_registered_model(world: World, urls: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    for output, given in (("here", {}), ("there", urls)):
        assert joint.main(["--launcher", "local", *world.sets(tmp_path / output, joint__steps=2, **given)]) == 0
    here, there = (read_manifest(tmp_path / output / "checkpoint") for output in ("here", "there"))
    assert here["files"] == there["files"]
    assert json.loads((tmp_path / "there" / "report.json").read_text())["memory"] == urls["memory"]

    system = f"start={urls['checkpoint']},{urls['memory']},{urls['index']}"
    common = ["--retrieval-only", "--num-selected=1", "--pool-size=4"]
    assert (
        evaluate.main(
            [
                "--questions",
                urls["questions"],
                "--output",
                str(tmp_path / "evaluation"),
                "--system",
                system,
                *common,
                "--splits=unseen",
            ]
        )
        == 0
    )
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = [f"--{name}={urls[name]}" for name in ("checkpoint", "memory", "index")]
    arguments = [
        *given,
        "--name=model",
        "--evaluation",
        str(tmp_path / "evaluation"),
        "--system=start",
        "--tracking-uri",
        database,
    ]
    assert register.main([*arguments, "--dry-run"]) == 0
    config = {"memory_uri": urls["memory"], "memory_hash": manifest_hash(world.memory)}
    assert pointed("memory", config) == urls["memory"]
    with pytest.raises(InputError, match="was registered with"):
        pointed("memory", config | {"memory_hash": "0" * 64})


def test_search_servers_are_given_names_that_any_machine_knows(
    world: World, urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.memory.parent)
    here = MemoryStore.open(world.memory.name)
    assert here.name == str(world.memory)
    there = MemoryStore.open(urls["memory"])
    assert there.name == urls["memory"]
    rows = here.row_ids[::5]
    for store, index, names in (
        (here, world.index.name, [str(world.memory), str(world.index)]),
        (there, urls["index"], [urls["memory"], urls["index"]]),
    ):
        opened = served(Retrieval(search_shards=2), owner=False)(index, store)
        assert isinstance(opened, ServedIndex)
        assert opened.servers.names == tuple(names)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv(CACHE, str(tmp_path / "cache-of-another-machine"))
    server = SearchServer(*opened.servers.names, number=0, num_servers=1, threads=1)
    assert np.array_equal(server.memory(rows), here.memory(rows))
    assert set(server.best_keys(here.keys(rows[:1]), 3)[0][0].tolist()) <= set(here.row_ids.tolist())


def test_a_submitted_job_takes_urls_and_no_relative_path(
    world: World, urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert joint.main(["--launcher", "local", *world.sets(tmp_path / "run", **urls), "--dry-run"]) == 0
    with pytest.raises(
        InputError, match="relative path leads nowhere; give an absolute one that every machine sees, or a URL"
    ):
        joint.main(
            [
                "--launcher",
                "local",
                *world.sets(tmp_path / "run", **{**urls, "memory": os.path.join("relative", "memory")}),
                "--dry-run",
            ]
        )


@pytest.mark.parametrize("program", [joint.main, evaluate.main])
def test_what_works_in_a_directory_is_refused_a_url(program: object, world: World, tmp_path: Path) -> None:
    assert callable(program)
    arguments = (
        ["--launcher", "local", *world.sets("s3://bucket/run")]  # type: ignore[arg-type]
        if program is joint.main
        else ["--questions", str(world.questions), "--output", "s3://bucket/run", "--system", "a=b,c"]
    )
    with pytest.raises(InputError, match="a URL, and this command works in a directory of this machine"):
        program(arguments)
