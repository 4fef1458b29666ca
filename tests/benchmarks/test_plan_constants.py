"""Constants of `clara plan` measured at one size predict other sizes."""

from pathlib import Path

import pytest
import torch

from benchmarks.plan_constants import Size, measured, other_sizes
from benchmarks.plan_constants_report import markdown


@pytest.mark.release
@pytest.mark.timeout(1800)
def test_one_size_predicts_twice_the_documents_other_chunks_and_other_pools(tmp_path: Path) -> None:
    """Within a quarter: all sizes in one run, in turns, and processor time, which other work changes little."""
    assert torch.get_num_threads() == 1
    size = Size()
    result = measured([size, *other_sizes(size)], 3, tmp_path)
    table = markdown(result)
    for row in result["sizes"][1:]:
        assert row["predicted"].keys() == {"compression", "joint step", "index", "refresh"}
        for part, seconds in row["predicted"].items():
            assert seconds == pytest.approx(row["found"][part], rel=0.25), f"{part}\n{table}"
