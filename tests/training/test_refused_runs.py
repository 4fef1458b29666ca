"""Joint runs refused at once, in one line with a remedy; pools of fewer than K, which are accepted."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from clara.config.load import load
from clara.errors import InputError
from clara.index.build import build_index
from tests.helpers import joint_world
from tests.helpers.joint_world import World
from training import joint
from training.run.recipe import absolute, run_paths, sole_user
from training.run.run import preflight


def train(world: World, output: Path, **values: object) -> int:
    return joint.main(["--launcher", "local", *world.sets(output, **values)])


def test_a_half_written_checkpoint(world: World, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(world.checkpoint, half)
    (half / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"half: no manifest\.json, so this is no finished CHECKPOINT; make it"):
        train(world, tmp_path / "run", checkpoint=half)


def test_a_place_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run'?: cannot be written"):
        train(world, tmp_path / "file" / "run")


def test_an_index_of_another_memory(world: World, tmp_path: Path, corpus_file: Path) -> None:
    shorter = tmp_path / "corpus.jsonl"
    shorter.write_text(
        "".join(corpus_file.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8"
    )
    other = joint_world.make(tmp_path / "other", world.checkpoint, shorter)
    with pytest.raises(InputError, match="build an index for this one"):
        train(world, tmp_path / "run", index=other.index)


def test_k_larger_than_n(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"num_selected is 9, joint\.num_candidates 8: K of N needs K ≤ N"):
        train(world, tmp_path / "run", joint__num_selected=9)


REFRESHED = {"joint__train_compressor": "true", "joint__refresh__policy": "full", "joint__refresh__every_steps": 2}


@pytest.mark.parametrize(
    ("factory", "why"), [("Nonsense", "FAISS says"), ("IVF4096,Flat", "4096 lists"), ("IVF2,PQ4", "256 centroids")]
)
def test_an_index_that_no_refresh_could_build(world: World, tmp_path: Path, factory: str, why: str) -> None:
    with pytest.raises(
        InputError, match=rf"retrieval\.factory '{factory}' for \d+ keys of 32 numbers: .*{why}.*or auto"
    ):
        train(world, tmp_path, retrieval__factory=f"'{factory}'", **REFRESHED)
    with pytest.raises(InputError, match=r"retrieval\.factory"):
        train(
            world,
            tmp_path,
            retrieval__factory=f"'{factory}'",
            joint__train_compressor="true",
            joint__refresh__final="true",
        )
    # Where nothing is built, it is not asked.
    assert train(world, tmp_path, retrieval__factory=f"'{factory}'", joint__steps=1) == 0


def prepared(world: World, output: Path, **values: object) -> None:
    """What a command does before anything starts."""
    sets = [part for part in world.sets(output, stage="joint", **values) if part != "--set"]
    config = absolute(load(None, sets))
    preflight(config, run_paths(config))


def test_two_processes_in_one_run(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        sole_user(lock, wait_seconds=0.1),
        pytest.raises(InputError, match="another process trains there"),
        sole_user(lock, wait_seconds=0.1),
    ):
        pass
    with sole_user(lock, wait_seconds=0.1):
        pass


def test_an_index_that_search_servers_cannot_hold(world: World, tmp_path: Path) -> None:
    for factory, why in (("HNSW8", "linked"), ("PCA16,Flat", "IndexPreTransform")):
        build_index(world.memory, tmp_path / factory, factory)
        with pytest.raises(InputError, match=rf"index .*{factory}, of kind '{factory}': .*{why}.*search_shards=0"):
            prepared(world, tmp_path / "run", index=tmp_path / factory, retrieval__search_shards=2)
    # That of a later version is refused before the run that would make it.
    with pytest.raises(InputError, match=r"retrieval\.factory, of kind 'HNSW8': .*linked"):
        prepared(world, tmp_path / "run", retrieval__factory="'HNSW8'", retrieval__search_shards=2, **REFRESHED)
    prepared(world, tmp_path / "run", retrieval__factory="'HNSW8'", retrieval__search_shards=2)


def test_an_index_that_every_rank_reads_whole_is_logged_with_its_size(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_index(world.memory, tmp_path / "blocks", "PQ8x4fs")
    with caplog.at_level(logging.WARNING):
        prepared(world, tmp_path / "run", launch__num_workers=3)
        assert "mapped" not in caplog.text
        prepared(world, tmp_path / "run", index=tmp_path / "blocks", launch__num_workers=3)
    size = (tmp_path / "blocks" / "index.faiss").stat().st_size / 2**30
    assert (
        caplog.text.count(f"of kind 'PQ8x4fs', can't be mapped: each rank (3 of them) reads all of its {size:.3f} GiB")
        == 1
    )


def test_a_gpu_for_refreshes_that_is_not_there(world: World, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=r"joint\.refresh\.num_gpus is 1, and there is no CUDA device"):
        train(world, tmp_path, joint__refresh__num_gpus=1, **REFRESHED)


@pytest.mark.parametrize("policy", ["full", "incremental"])
def test_a_refresh_of_what_does_not_change(world: World, tmp_path: Path, policy: str) -> None:
    with pytest.raises(InputError, match=rf"policy is '{policy}', joint\.train_compressor false"):
        train(world, tmp_path, joint__refresh__policy=policy)


def test_several_that_encode_want_ray(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"joint\.refresh\.num_workers is 3, launcher local"):
        train(world, tmp_path, joint__refresh__num_workers=3, **REFRESHED)


@pytest.mark.parametrize("policy", ["full", "incremental"])
def test_refreshes_that_would_never_begin(world: World, tmp_path: Path, policy: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"policy is '{policy}', start_step, every_steps and trigger_cosine are 0.*"
        r"set joint\.refresh\.every_steps",
    ):
        train(world, tmp_path, joint__refresh__policy=policy, joint__train_compressor="true")


def test_settings_without_effect_are_logged(world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = REFRESHED | {
        "joint__refresh__start_step": 7,
        "joint__learning_rates": "{generator = 1e-3, compressor = 1e-3}",
    }
    arguments = ["--launcher", "local", "--dry-run", *world.sets(tmp_path, joint__train_generator="false", **values)]
    with caplog.at_level(logging.WARNING):
        assert joint.main(arguments) == 0
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "joint.refresh.start_step is 7, joint.steps 6: no refresh will take place; lower start_step",
        "joint.learning_rates.generator is 0.001, joint.train_generator false: the rate is not used",
    ]


def test_published_pools_of_fewer_than_k_are_read_whole(world: World, tmp_path: Path) -> None:
    values = {
        "joint__published_pool": "true",
        "joint__in_batch": "false",
        "joint__num_candidates": 12,
        "joint__num_selected": 10,
    }
    assert train(world, tmp_path, joint__steps=1, **values) == 0
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 1
