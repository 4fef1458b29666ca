"""Damaged question files: each mutated file gives questions and counted rows, or one line that names the file.

How many rows a file has is counted by other means: values of `json`, rows of `csv`, lines that are not blank.
"""

from pathlib import Path

import pytest

from pipelines.build_questions.detect import detect
from tests.helpers.fuzzed_questions import FILES, check, run


@pytest.mark.parametrize("case", FILES)
def test_a_few_mutated_files(tmp_path: Path, case: str) -> None:
    form, name, data = FILES[case]
    check(case, tmp_path, data)
    if case != "qrels":
        assert detect([str(tmp_path / name)], judged=form in ("beir", "msmarco")) in (form, "hotpotqa", "2wiki")
    run(case, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("case", FILES)
def test_mutated_files(tmp_path: Path, case: str) -> None:
    run(case, tmp_path, 200)
