"""The benchmark of an INDEX's keys: small indices are built and searched, and the report is made of the figures."""

import json
from pathlib import Path

import pytest

from benchmarks.index_data import make_memory
from benchmarks.index_keys import BATCHES, SYSTEMS, as_markdown, build, factory_of, search
from clara.memory.store import MemoryStore

RESULTS = sorted((Path(__file__).resolve().parents[2] / "infra" / "results" / "index_keys").glob("*-rows.json"))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_the_tables_are_made_of_the_figures_beside_them(path: Path) -> None:
    assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(json.loads(path.read_text()))


def test_small_ones_are_built_and_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    make_memory(tmp_path, 400, shape=(2, 12), key_size=24, shard_rows=150, common=0.69)
    assert len(MemoryStore.open(tmp_path / "memory", verify=True)) == 400
    for name in SYSTEMS:
        built = build(tmp_path, name, "Flat")
        assert built["index_bytes"] > 400 * 4 * 12
        found = search(tmp_path, name, first_level=50)
        assert all(found["by_key_ms"][str(batch)] > 0 for batch in BATCHES)
        # Keys of M·D or D numbers are exact, but for the payload's rounding to int8, which stored keys do not have.
        assert found["recall_by_key"] > 0.95
        assert found["recall_of_both_levels"] == 1


def test_lists_follow_the_number_of_rows_and_are_the_same_for_all() -> None:
    assert factory_of("projection", 100_000) == "IVF1024,SQfp16"
    assert factory_of("slot-mean-codes", 100_000) == "OPQ64,IVF1024,PQ64"
    assert factory_of("slot-mean", 1_000_000, 1024) == "IVF1024,SQfp16"
    assert factory_of("slot-mean", 100) == factory_of("slot-mean", 50_001)
