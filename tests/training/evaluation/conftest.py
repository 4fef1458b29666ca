"""Fixtures of the evaluation tests."""

import pytest

from tests.helpers.evaluation_world import World


@pytest.fixture(scope="session")
def world(evaluation_artefacts: World) -> World:
    """The artefacts that an evaluation reads, in the place of those of a joint run."""
    return evaluation_artefacts
