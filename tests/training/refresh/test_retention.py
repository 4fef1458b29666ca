"""Which versions of a run are deleted: what nobody uses, and never what something points to."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.errors import InputError
from clara.storage.manifest import manifest_hash, write_manifest
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.run_state import run_states
from training.refresh.retention import (
    Made,
    check_replaceable,
    discard,
    disposable,
    made_versions,
    pin,
    pinned_by,
    prune,
)

RUN = {
    "joint__train_compressor": "true",
    "joint__steps": 8,
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "fixed",
    "joint__refresh__delta_steps": 1,
    "joint__refresh__every_steps": 1,
}


def version(folder: Path, number: int) -> Made:
    """A version on disk, as small as one can be, with the note that its run keeps of it."""
    memory, index, snapshot = (
        folder / f"memory-v{number}",
        folder / f"index-v{number}",
        folder / f"run/snapshot-v{number}",
    )
    for path, kind in ((memory, "MEMORY"), (index, "INDEX"), (snapshot, "CHECKPOINT")):
        write_manifest(path, kind=kind, files=[], recipe={"number": number}, counts={"number": number})
    note = folder / f"run/refresh-v{number}.json"
    note.write_text(json.dumps({"number": number, "memory_hash": manifest_hash(memory)}))
    return Made(number, memory, index, snapshot, note)


def state(folder: Path, step: int, current: int, pending: int | None = None) -> Path:
    path = folder / f"run/run_state/step-{step:08d}/state.json"
    path.parent.mkdir(parents=True)
    versions = {"current": {"number": current}, "pending": None if pending is None else {"number": pending}}
    path.write_text(json.dumps({"step": step, "stage": {"versions": versions}}))
    return path


def numbers(folder: Path) -> list[int]:
    return [v.number for v in made_versions(folder, folder / "run")]


@given(
    there=st.sets(st.integers(1, 12)),
    current=st.integers(0, 12),
    keep=st.integers(0, 4),
    needed=st.sets(st.integers(1, 12), max_size=3),
)
def test_what_is_used_or_kept_or_needed_is_never_disposable(
    there: set[int], current: int, keep: int, needed: set[int]
) -> None:
    nowhere = Path("/nowhere")
    made = [Made(n, nowhere, nowhere, nowhere, nowhere) for n in there]
    gone = {v.number for v in disposable(made, current=current, keep=keep, needed=needed)}
    older = sorted(n for n in there if n < current)
    assert gone == {n for n in older if n not in needed and sum(m > n for m in older) >= keep}


def test_prune_deletes_memory_index_and_snapshot_and_says_so(tmp_path: Path) -> None:
    made = [version(tmp_path, n) for n in (1, 2, 3, 4)]
    assert prune(tmp_path, tmp_path / "run", current=4, keep=1, states=[], step=9) == [1, 2]
    assert numbers(tmp_path) == [3, 4]
    assert not any(path.exists() for v in made[:2] for path in (v.memory, v.index, v.snapshot))
    lines = [json.loads(line) for line in (tmp_path / "run/deleted-versions.jsonl").read_text().splitlines()]
    assert [(line["number"], line["after_step"]) for line in lines] == [(1, 9), (2, 9)]
    assert all(line["bytes"] > 0 for line in lines)


def test_what_a_run_state_needs_stays(tmp_path: Path) -> None:
    for n in (1, 2, 3, 4, 5):
        version(tmp_path, n)
    states = [state(tmp_path, 2, current=0, pending=1), state(tmp_path, 4, current=3)]
    assert prune(tmp_path, tmp_path / "run", current=5, keep=0, states=states, step=9) == [2, 4]
    assert numbers(tmp_path) == [1, 3, 5]


@pytest.mark.parametrize("part", ["memory", "index"])
def test_what_a_model_points_to_stays_and_is_not_replaced(tmp_path: Path, part: str) -> None:
    first = version(tmp_path, 1)
    version(tmp_path, 2)
    pin(getattr(first, part), "model towns in sqlite:///mlflow.db")
    pin(getattr(first, part), "model towns in sqlite:///mlflow.db")
    assert pinned_by(getattr(first, part)) == "model towns in sqlite:///mlflow.db"
    assert prune(tmp_path, tmp_path / "run", current=2, keep=0, states=[], step=9) == []
    with pytest.raises(InputError, match=r"model towns in .* points to it.*another output"):
        check_replaceable(getattr(first, part))


def test_what_another_run_wrote_under_the_name_stays(tmp_path: Path) -> None:
    first = version(tmp_path, 1)
    version(tmp_path, 2)
    write_manifest(first.memory, kind="MEMORY", files=[], recipe={}, counts={"rows": 7})
    assert prune(tmp_path, tmp_path / "run", current=2, keep=0, states=[], step=9) == []
    assert numbers(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("memory", "index", "snapshot"),
    # What each holds: nothing whole, what the snapshot encodes, or something else.
    [
        ("", "", ""),
        ("own", "own", "own"),
        ("own", "", "own"),
        ("", "own", "own"),
        ("other", "", "own"),
        ("", "other", "own"),
        ("other", "other", ""),
    ],
)
@pytest.mark.parametrize("taken", ["", "noted", "pinned", "state"])
def test_what_is_given_up_is_deleted_and_nothing_of_another(
    tmp_path: Path, memory: str, index: str, snapshot: str, taken: str
) -> None:
    run = tmp_path / "run-own"
    folders = {
        "MEMORY": (tmp_path / "memory-v3", memory),
        "INDEX": (tmp_path / "index-v3", index),
        "CHECKPOINT": (run / "snapshot-v3", snapshot),
    }
    for kind, (folder, holds) in folders.items():
        folder.mkdir(parents=True)
        (folder / "shard").write_text("rows")
        if holds:
            write_manifest(folder, kind=kind, files=[], recipe={}, fingerprint=holds)
    whole = [folder for folder, holds in list(folders.values())[:2] if holds]
    if taken == "noted" and whole:
        hashes = {
            f"{kind.lower()}_hash": manifest_hash(f) if h else ""
            for kind, (f, h) in folders.items()
            if kind != "CHECKPOINT"
        }
        (tmp_path / "run-another").mkdir()
        (tmp_path / "run-another/refresh-v3.json").write_text(json.dumps({"number": 3, **hashes}))
    if taken == "pinned":
        for folder in whole:
            pin(folder, "model towns")
    states = [state(tmp_path, 4, current=2, pending=3)] if taken == "state" else []
    discard(tmp_path, run, 3, "own" if snapshot else "", states=states)
    for folder, holds in list(folders.values())[:2]:
        assert folder.exists() == (holds == "other" or (holds == "own" and taken in ("noted", "pinned")))
    assert (run / "snapshot-v3").exists() == (taken == "state" and bool(snapshot))


def test_a_run_keeps_as_many_versions_as_configured_and_what_its_states_need(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    pinned: list[int] = []
    began = time.time()
    real = Inline.start

    def start_and_pin(self, job, log):  # type: ignore[no-untyped-def]
        handle = real(self, job, log)
        if job.memory.endswith("memory-v2"):
            pin(Path(job.memory), "model towns")
            pinned.append(2)
        return handle

    monkeypatch.setattr(Inline, "start", start_and_pin)
    assert joint.main(["--launcher", "local", *world.sets(tmp_path, **RUN)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (run,) = tmp_path.glob("run-*")
    # Version n is of the snapshot after n steps and used from step n + 2 on. The newest is 8, for rollback there is 7.
    versions = [json.loads(s.read_text())["stage"]["versions"] for s in run_states(run)]
    # Of a run that is over the newest state is left; it names 5 and 6. Those before it named 3 and 4.
    assert [(v["current"]["number"], v["pending"]["number"]) for v in versions] == [(5, 6)]
    # When it was asked for outlasts a restart.
    assert began < versions[0]["pending"]["asked_at"] < time.time()
    assert pinned == [2]
    left = [v.number for v in made_versions(tmp_path, run)]
    assert left == [2, 5, 6, 7, 8]
    assert all((run / f"snapshot-v{n}").is_dir() == (n in left) for n in range(1, 9))
    assert {d["number"] for d in report["deleted_versions"]} == {1, 3, 4}
    assert report["memory"] == str(tmp_path / f"memory-v{left[-1]}")
    assert Path(world.memory).is_dir()
