"""Emulated object stores, and the MEMORY that tests compare with."""

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clara.storage.cache import CACHE
from clara.storage.retry import PATIENCE
from pipelines.build_memory.command import main as build_memory
from tests.helpers import stores, tiny
from tests.helpers.store_place import Place, command


@pytest.fixture(scope="session")
def running() -> Iterator[Callable[[str], stores.Store]]:
    """A store by its kind; each is started once."""
    with ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(stores.running(kind)))


# Both kinds go through fsspec and one code path of ours. `make test` runs the one whose emulator is lighter.
@pytest.fixture(params=["s3", pytest.param("gs", marks=pytest.mark.slow)])
def place(
    request: pytest.FixtureRequest,
    running: Callable[[str], stores.Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    store = running(request.param)
    for name, value in {**store.environment, CACHE: str(tmp_path / "cache"), PATIENCE: "60"}.items():
        monkeypatch.setenv(name, value)
    stores.forget_clients()
    store.proxy.log.clear()
    yield Place(f"{store.url}/{uuid.uuid4().hex[:8]}", store)
    store.proxy.down = lambda method, path: False


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("stores") / "corpus.jsonl")


@pytest.fixture(scope="session")
def built(corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    memory = tmp_path_factory.mktemp("built") / "local"
    with contextlib.chdir(corpus.parent):
        assert build_memory(command("corpus.jsonl", str(memory), str(tiny_checkpoint))) == 0
    return memory


@pytest.fixture
def local(built: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The MEMORY that the same command makes on a disk, from the corpus in the working directory."""
    monkeypatch.chdir(corpus.parent)
    return built
