"""The INDEX of a refreshed version: inherited settings, and a recall below the floor is reported everywhere."""

import json
from pathlib import Path

import faiss
import pytest

from clara.index.build import build
from clara.index.ivf_file import read_mapped
from clara.index.recall import Measurement
from clara.index.recipe import Build
from clara.index.search import FILE
from clara.storage.manifest import read_manifest
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.lines import read
from training.run.report import figures

# Codes of one byte a key, and hardly more candidates than are compared: recall is low.
COARSE = Build("IVF16,PQ1x4", probes=15, recall_floor=0.95, measurement=Measurement(first_level=12))


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("index") / "coarse"
    build(world.memory, directory, COARSE)
    return directory


@pytest.mark.parametrize("policy", ["full", "incremental"])
def test_settings_are_inherited_and_a_low_recall_is_reported_everywhere(
    world: World,
    index: Path,
    tmp_path: Path,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    sets = world.sets(
        tmp_path,
        index=index,
        retrieval__factory="auto",
        retrieval__first_level=12,
        retrieval__exact_rows=0,
        joint__steps=3,
        joint__train_compressor="true",
        joint__refresh__policy=policy,
        joint__refresh__start_step=1,
        joint__refresh__switch="stop",
    )
    assert joint.main(["--launcher", "local", *sets]) == 0
    made = read_manifest(tmp_path / "index-v1", "INDEX")
    assert made["factory"] == "IVF16,PQ1x4"
    assert made["made_by"]["recall_floor"] == 0.95
    assert faiss.extract_index_ivf(read_mapped(tmp_path / "index-v1" / FILE)).nprobe == 15
    recall, before = (
        made["measured"]["recall_at_10"],
        read_manifest(index)["measured"]["recall_at_10"],
    )
    assert 0 < recall < 0.95
    # The worker's log may be on another machine; rank 0's log and the report have the message too.
    messages = [(r.name, r.getMessage()) for r in caplog.records if "under the floor of 0.95" in r.getMessage()]
    assert [text.split("/")[-1].split(":")[0] for name, text in messages if name == "training.refresh.job"] == [
        "coarse",
        "index-v1",
        "index-v1",
    ]
    assert [f"version 1: {tmp_path}/index-v1: recall@10 is" in text for _, text in messages].count(True) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recall_at_10"] == report["refreshes"][0]["recall_at_10"] == recall
    assert "under the floor of 0.95" in report["refreshes"][0]["recall_warning"]
    assert figures(report)["run.recall_at_10"] == recall
    metrics = read(next(tmp_path.glob("run-*")) / "metrics.jsonl")
    used = [(values["used_memory_version"], values["index_recall_at_10"]) for values in metrics.values()]
    assert used == [(0, before), (1, recall), (1, recall)]
    assert [values.get("refresh_recall_at_10") for values in metrics.values()] == [recall, None, None]
