"""Joint runs that are refused before they begin, in one line that says what to do; and pools of fewer than K, which are not."""

import json
import shutil
from pathlib import Path

import joint_world
import pytest
from joint_world import World

from clara.errors import InputError
from training import joint


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus_file: Path) -> World:
    return joint_world.make(tmp_path_factory.mktemp("refused-world"), tiny_checkpoint, corpus_file)


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
    shorter.write_text("".join(corpus_file.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
    other = joint_world.make(tmp_path / "other", world.checkpoint, shorter)
    with pytest.raises(InputError, match="build an index for this one"):
        train(world, tmp_path / "run", index=other.index)


def test_k_larger_than_n(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"num_selected is 9, joint\.num_candidates 8: K of N needs K ≤ N"):
        train(world, tmp_path / "run", joint__num_selected=9)


def test_published_pools_of_fewer_than_k_are_read_whole(world: World, tmp_path: Path) -> None:
    values = {"joint__published_pool": "true", "joint__in_batch": "false", "joint__num_candidates": 12, "joint__num_selected": 10}
    assert train(world, tmp_path, joint__steps=1, **values) == 0
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 1
