"""Fixtures of the training tests: the artefacts that a joint run reads, and a Ray cluster."""

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


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus_file: Path) -> World:
    """The artefacts that a tiny joint run reads."""
    return joint_world.make(tmp_path_factory.mktemp("world"), tiny_checkpoint, corpus_file)
