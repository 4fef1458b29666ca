"""Damaged corpora: each mutated file gives documents, counted dead letters or one line, and loses no record.

What was in a file is counted by other means: lines that are not blank, what `json`, `csv` and pyarrow find.
"""

from pathlib import Path

import pytest

from tests.helpers.fuzzed_corpora import FILES, check, run


@pytest.mark.parametrize("name", FILES)
def test_a_few_mutated_files(tmp_path: Path, name: str) -> None:
    check(tmp_path / name, FILES[name])
    run(name, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_files(tmp_path: Path, name: str) -> None:
    run(name, tmp_path, 200)
