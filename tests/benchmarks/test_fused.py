"""The benchmark of an INDEX with all sources: a small one is built and searched; reports are made of the figures."""

import json
from pathlib import Path

import pytest

from benchmarks.fused import BATCHES, SHAPE, SOURCES, as_markdown, build, search
from benchmarks.words import make_memory
from clara.storage.manifest import read_manifest
from tests.helpers import embedding_model

RESULTS = sorted((Path(__file__).resolve().parents[2] / "infra" / "results" / "fused").glob("*-rows.json"))


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_the_tables_are_made_of_the_figures_beside_them(path: Path) -> None:
    assert path.with_suffix(".md").read_text(encoding="utf-8") == as_markdown(json.loads(path.read_text()))


def test_a_small_one_is_built_with_every_source_and_searched(tmp_path: Path) -> None:
    model = embedding_model.write(tmp_path / "model")
    make_memory(tmp_path / "memory", 60, SHAPE)
    built = build(tmp_path, str(model))
    manifest = read_manifest(tmp_path / "index", "INDEX")
    assert manifest["words"]
    assert manifest["dense"]["size"] * 2 * 60 < built["bytes"]["dense"]
    assert sum(built["bytes"].values()) == sum(entry["bytes"] for entry in manifest["files"])
    assert set(built["seconds_of"]) == set(SOURCES)
    assert min(built["seconds_of"].values()) >= 0
    searched = search(tmp_path, str(model))
    assert set(searched["latency"]) == {*SOURCES, "fused"}
    assert all(of[str(batch)]["median_ms"] > 0 for of in searched["latency"].values() for batch in BATCHES)
