"""Fixtures of the evaluation tests."""

import pytest

from clara.data.questions import Question, read_questions
from clara.retrieval.retriever import Retriever
from tests.helpers.evaluation_world import World


@pytest.fixture(scope="session")
def world(evaluation_artefacts: World) -> World:
    """The artefacts that an evaluation reads, in the place of those of a joint run."""
    return evaluation_artefacts


@pytest.fixture(scope="session")
def retriever(world: World) -> Retriever:
    """The untrained system over the whole MEMORY."""
    return Retriever.open(world.checkpoint, world.memory, world.index)


@pytest.fixture(scope="session")
def questions(world: World) -> list[Question]:
    """All questions of the artefacts."""
    return read_questions(world.questions)
