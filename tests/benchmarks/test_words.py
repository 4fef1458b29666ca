"""The benchmark of an INDEX's words: its MEMORY, its figures, its report."""

from pathlib import Path

from benchmarks.words import BATCHES, as_markdown, make_memory, search
from clara.index.build import build_index
from clara.memory.store import MemoryStore


def test_a_small_one_is_searched_and_reported(tmp_path: Path) -> None:
    make_memory(tmp_path / "memory", 60)
    store = MemoryStore.open(tmp_path / "memory", verify=True)
    assert len(store) == 60
    assert {len(chunk.text.split()) for chunk in store.records(store.row_ids)} == {100}
    build_index(tmp_path / "memory", tmp_path / "index", "Flat", num_queries=0)
    searched = search(tmp_path)
    assert all(searched[f"batch_{batch}"]["median_ms"] > 0 for batch in BATCHES)
    built = {"seconds": 1.0, "peak_bytes": 2**21, "peak_own_bytes": 2**20}
    found = {"rows": 60, "vocabulary": 5, "hardware": "h", "load_average": [1.0], "note": "", "command": "c"}
    report = as_markdown(found | {"build": built, "build_without_words": built, "search": searched, "bytes": 6000})
    assert "| peak MiB (without mapped files) | 2 (1) | 2 (1) |" in report
    assert "100 bytes per row" in report
