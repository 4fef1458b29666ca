"""Fixtures of the training tests: the artefacts that a joint run reads, an evaluation, MLflow stores, a Ray cluster."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clara.tracking.database import open_tracking
from tests.helpers import evaluation_world, joint_world
from tests.helpers.joint_world import World
from tests.helpers.ray_cluster import Cluster
from training import evaluate


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


@pytest.fixture(scope="session")
def evaluated(evaluation_artefacts: evaluation_world.World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EVALUATION of systems `before` and `after` on all twelve questions; it is only read."""
    world, output = evaluation_artefacts, tmp_path_factory.mktemp("evaluated") / "evaluation"
    given = ["--questions", str(world.questions), "--output", str(output), "--num-selected", "2", "--generate", "0"]
    for name, checkpoint in (("before", world.checkpoint), ("after", world.trained)):
        given += ["--system", f"{name}={checkpoint},{world.memory},{world.index}"]
    assert evaluate.main(given) == 0
    return output


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Puts an empty MLflow store into a folder. Returns its URI.

    It is a copy: MLflow takes two seconds to create one.
    """
    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"

    def put(folder: Path) -> str:
        if not made.exists():
            from mlflow import MlflowClient

            open_tracking(f"sqlite:///{made}", MlflowClient)
        return f"sqlite:///{shutil.copy(made, folder / made.name)}"

    return put
