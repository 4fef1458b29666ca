"""The system that the service's tests serve."""

import pytest

import clara
from clara.system import System
from tests.helpers.evaluation_world import World


@pytest.fixture(scope="session")
def system(evaluation_artefacts: World) -> System:
    """One whose answers are as long as they may be, as its generator is untrained."""
    world = evaluation_artefacts
    return clara.open(world.checkpoint, world.memory, world.index)
