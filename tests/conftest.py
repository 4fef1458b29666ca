"""Fixtures that every test may use. Folders are made once and shared: a test that damages one works on a copy."""

import gc
import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import faiss
import pytest
import torch

from clara.config.model import Backbone
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.model import ClaraModel
from tests.helpers import evaluation_world, tiny
from tests.helpers.network import refuse_other_machines
from tests.helpers.ray_cluster import NICENESS

gc.disable()  # until all is imported, a quarter of which it would take


@pytest.hookimpl(trylast=True)  # after those that choose tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest time limits first, then those with most tests: two processes then end together."""
    limits: dict[Path, list[float]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("timeout")
        limits[item.path].append(float(mark.args[0]) if mark else 0.0)
    items.sort(key=lambda item: (max(limits[item.path]), len(limits[item.path])), reverse=True)


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage collections pass over its million objects."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run on every core at once: threads of one that wait for another's cost more than they bring."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ray_workers_are_not_nice() -> None:
    os.environ.update(NICENESS)


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        refuse_other_machines(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_flush() -> Iterator[None]:
    """Files are not flushed to the disk, which takes longer than writing them: tests kill processes, no machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A command run in this process logs to the test's own standard error, which closes with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of 2 layers and width 32, with a fast tokenizer and a chat template."""
    return tiny.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHECKPOINT (float32) for `tiny_backbone`: M = 4, rank 4, three different adapters."""
    directory = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    save_checkpoint(tiny.build_model(tiny_backbone), directory, stage="pretrain", recipe={"made_by": "tests"})
    return directory


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> ClaraModel:
    """The model of `tiny_checkpoint` in float32, a new one for each test."""
    return load_checkpoint(tiny_checkpoint, Backbone(dtype="float32"))


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSONL of forty short documents with `id`, `title` and `text`."""
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="session")
def evaluation_artefacts(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, corpus_file: Path
) -> evaluation_world.World:
    """The artefacts that an evaluation reads; training the second generator takes a second."""
    return evaluation_world.make(tmp_path_factory.mktemp("evaluation"), tiny_checkpoint, corpus_file)
