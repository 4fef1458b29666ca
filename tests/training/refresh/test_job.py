"""One refresh as a job: shares of several processes equal one process; a wrong result is refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from clara.config.model import Backbone
from clara.index.build import build_index
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.storage.manifest import MANIFEST
from tests.helpers import joint_world
from tests.helpers.joint_world import World
from training.refresh.check_result import check_result
from training.refresh.job import RefreshError, encode_share, run_job


def moved(world: World, folder: Path) -> Path:
    """A snapshot whose compressor is another."""
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.1)
    save_checkpoint(model, folder, stage="joint", recipe={})
    return folder


def test_shares_make_what_one_process_makes(world: World, tmp_path: Path) -> None:
    snapshot = str(moved(world, tmp_path / "snapshot"))
    shared = dataclasses.replace(world.refresh_job(tmp_path / "shared"), checkpoint=snapshot)
    for share in (1, 0):
        encode_share(shared, share, 2)
        assert len(list(Path(shared.memory).glob("shard-*/memory.safetensors"))) == 2 - share
    assert not (Path(shared.memory) / MANIFEST).exists()
    before = {path: path.stat().st_mtime_ns for path in Path(shared.memory).glob("shard-*/memory.safetensors")}
    made = run_job(shared)
    assert {path: path.stat().st_mtime_ns for path in before} == before  # found finished
    alone = run_job(dataclasses.replace(world.refresh_job(tmp_path / "alone"), checkpoint=snapshot))
    assert (made.memory_hash, made.index_hash, made.rows) == (alone.memory_hash, alone.index_hash, alone.rows)
    check_result(shared, made)


def test_a_version_links_the_words_of_the_index_before(world: World, tmp_path: Path) -> None:
    run_job(dataclasses.replace(world.refresh_job(tmp_path), parts_index=str(world.index)))
    words = list((world.index / "words").iterdir())
    assert words
    assert all(os.path.samefile(path, tmp_path / "index" / "words" / path.name) for path in words)


def test_a_version_has_no_words_where_the_index_before_has_none(world: World, tmp_path: Path) -> None:
    build_index(world.memory, tmp_path / "without", "Flat", num_queries=0, words=False)
    run_job(dataclasses.replace(world.refresh_job(tmp_path), parts_index=str(tmp_path / "without")))
    assert not (tmp_path / "index" / "words").exists()


def test_a_version_of_another_snapshot_is_refused(world: World, tmp_path: Path) -> None:
    asked = world.refresh_job(tmp_path)
    made = run_job(asked)
    check_result(asked, made)
    other = dataclasses.replace(asked, checkpoint=str(moved(world, tmp_path / "snapshot")))
    with pytest.raises(RefreshError, match=r"compressor: expected .* found"):
        check_result(other, made)


def test_a_version_of_other_rows_is_refused(
    world: World, tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path
) -> None:
    lines = corpus_file.read_text(encoding="utf-8").splitlines(keepends=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(lines[1:]), encoding="utf-8")
    assert json.loads(lines[0])["id"]
    smaller = joint_world.make(tmp_path / "smaller", tiny_checkpoint, fewer)
    made = run_job(smaller.refresh_job(tmp_path))
    with pytest.raises(RefreshError, match=r"memory: its rows are not those of .*memory-v0"):
        check_result(world.refresh_job(tmp_path), made)
