"""What tests of registration share: two evaluated systems, and an empty store."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.evaluation_world import World

MODEL = "towns"
QUESTIONS = ["Who is the mayor of Arlen on the Tamo?", "What does the market of Jorvik on the Wend sell?"]


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


@pytest.fixture(scope="module")
def own_world(evaluation_artefacts: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with a MEMORY and an INDEX that no other module pins."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("memory", "index"):
        shutil.copytree(getattr(evaluation_artefacts, name), folder / name)
    return dataclasses.replace(evaluation_artefacts, memory=folder / "memory", index=folder / "index")


@pytest.fixture(scope="module")
def evaluation(evaluated: Path) -> Path:
    """EVALUATION of both systems on all twelve questions."""
    return evaluated


@pytest.fixture(scope="module")
def store(empty_store: Callable[[Path], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty store; nothing may be left in the working directory."""
    folder = tmp_path_factory.mktemp("store")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = Path.cwd()
    os.chdir(elsewhere)
    yield empty_store(folder)
    os.chdir(before)
    assert list(elsewhere.iterdir()) == []


def registration(world: World, evaluation: Path, store: str, system: str) -> list[str]:
    checkpoint = {"before": world.checkpoint, "after": world.trained}[system]
    paths = ["--checkpoint", str(checkpoint), "--memory", str(world.memory), "--index", str(world.index)]
    more = ["--evaluation", str(evaluation), "--system", system, "--max-new-tokens", "4"]
    return ["--name", MODEL, *paths, *more, "--tracking-uri", store]


def promotion(store: str, version: str, *more: str) -> list[str]:
    """Arguments of a promotion without floors: the evaluation has no baselines."""
    return ["--name", MODEL, "--version", version, "--tracking-uri", store, "--floors=", *more]
