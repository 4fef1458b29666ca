"""The system that the service's tests serve."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import clara
from clara.config.model import Fusion, Score
from clara.model.artefact import Checkpoint
from clara.model.question_mean import copy_with_score
from clara.system import System
from tests.helpers.browser import chromium
from tests.helpers.evaluation_world import World

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def system(evaluation_artefacts: World) -> System:
    """One whose answers are as long as they may be, as its generator is untrained."""
    world = evaluation_artefacts
    return clara.open(world.checkpoint, world.memory, world.index)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def fused(evaluation_artefacts: World, tmp_path_factory: pytest.TempPathFactory) -> System:
    """A system whose score weighs memory and words, and whose generator has learned the form of the answers."""
    world, folder = evaluation_artefacts, tmp_path_factory.mktemp("fused") / "checkpoint"
    fusion = Fusion(weights={"memory": 0.05, "bm25": 1.5})
    copy_with_score(Checkpoint.open(world.trained), folder, Score(), None, fusion=fusion, recipe={"made_by": "tests"})
    return clara.open(folder, world.memory, world.index)
