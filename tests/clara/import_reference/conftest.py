"""A small made-up published checkpoint, shared or to be damaged."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import published
from tests.helpers.import_command import SMALL


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base and checkpoint of a small made-up one; tests that damage it work on a copy."""
    return published.make(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def copy(small: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same as a test may damage it."""
    return small[0], Path(shutil.copytree(small[1], tmp_path / "checkpoint"))
