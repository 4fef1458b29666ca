"""What tests of runs on a Ray cluster share: a separate cluster, and something small to train on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import joint_world
from tests.helpers.joint_world import World
from tests.helpers.ray_cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A head of two cores; nodes are added by the test."""
    started = Cluster(tmp_path, num_cpus=2)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def world(tmp_path: Path, tiny_checkpoint: Path, corpus_file: Path) -> World:
    """The artefacts of a tiny joint run."""
    return joint_world.make(tmp_path / "world", tiny_checkpoint, corpus_file)
