"""The INDEX benchmark's report: Markdown from the figures, a remark only beside the run that it is about."""

import json
from pathlib import Path

import pytest

from benchmarks.index import notes_of
from benchmarks.index_report import table

RESULTS = sorted((Path(__file__).resolve().parents[2] / "infra" / "results" / "index").glob("*-rows.json"))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_the_tables_are_made_of_the_figures_beside_them(path: Path) -> None:
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table(json.loads(path.read_text(encoding="utf-8")))


def test_an_earlier_runs_notes_do_not_stay_beside_new_figures() -> None:
    before = {"notes": ["flat was not run"]}
    assert notes_of([], before, ["flat"]) == []
    assert notes_of(["new"], before, ["flat"]) == ["new"]
    assert notes_of([], before, []) == ["flat was not run"]
    assert notes_of([], {"systems": {}}, []) == []
