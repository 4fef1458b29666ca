"""Fixtures of the corpus command."""

from pathlib import Path

import pytest

from pipelines.build_memory.command import main
from tests.helpers.memory_command import Build, command


@pytest.fixture
def build(tiny_checkpoint: Path, tmp_path: Path) -> Build:
    """Runs the command in this process on files of the given bytes, and returns its output."""

    def run(files: dict[str, bytes] | Path, *arguments: str, output: str = "memory") -> Path:
        if isinstance(files, dict):
            (tmp_path / "corpus").mkdir(exist_ok=True)
            for name, data in files.items():
                (tmp_path / "corpus" / name).write_bytes(data)
        given = str(files) if isinstance(files, Path) else str(tmp_path / "corpus" / "*")
        assert main(command(given, tmp_path / output, tiny_checkpoint, "--num-workers=1", *arguments)) == 0
        return tmp_path / output

    return run
