"""The benchmark of an evaluation over many rows: what it does, and its report."""

from pathlib import Path

from benchmarks.evaluation_rows import as_markdown, draw_questions, evaluate
from benchmarks.words import make_memory
from clara.index.build import build_index
from clara.memory.store import MemoryStore


def test_a_small_one_is_ranked_and_reported(tmp_path: Path) -> None:
    make_memory(tmp_path / "memory", 120)
    build_index(tmp_path / "memory", tmp_path / "index", "Flat", num_queries=0)
    store = MemoryStore.open(tmp_path / "memory")
    assert all(store.rows_of(q.positive_ids[0]) for q in draw_questions(store, 7))
    done = evaluate(tmp_path, 7)
    assert {"pools", "rank by memory", "rank by bm25"} < done["parts"].keys()
    assert done["seconds"] > 0
    found = {"rows": 120, "hardware": "h", "load_average": [1.0], "note": "", "command": "c", "evaluation": done}
    report = as_markdown(found)
    assert "Retrieval of 7 questions over 120 rows" in report
    assert "within 600 s and 4 GB" in report
