"""The benchmark of a corpus job with and without dense vectors: its ratios, and its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dense_job import STEPS, as_markdown, ratios

RESULTS = sorted((Path(__file__).resolve().parents[2] / "infra" / "results" / "dense_job").glob("results.json"))


def runs(rows: int, compress: float, index: float, dense: float) -> dict[str, Any]:
    spent = dict(zip(STEPS, (compress, index, dense), strict=True))
    return {"rows": rows} | {
        name: {"seconds": 2 * of, "processor_seconds": of, "peak_pss_bytes": 2**20} for name, of in spent.items()
    }


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_the_table_is_made_of_the_figures_beside_it(path: Path) -> None:
    found = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(found)
    assert ratios(found) == found["ratios"]


def test_start_up_is_taken_out_of_a_further_row() -> None:
    found: dict[str, Any] = {"runs": {"one": runs(1, 10.0, 4.0, 8.0), "all": runs(101, 60.0, 5.0, 19.0)}}
    found["ratios"] = ratios(found)
    assert found["ratios"] == {"whole_commands": 79 / 65, "further_rows": 61 / 51}
    around = {"cores": 2, "processor": "p", "load_average": [1.0], "command": "c"}
    report = as_markdown(found | {"documents": 101, "workers": 1, "runner": "local", "environment": around})
    assert "| build_index --dense-model | 38 | 19.0 | 8.0 | 110 | 1 |" in report
    assert "takes 1.22 times the processor time of the same without; 1.20 times for each further row." in report
