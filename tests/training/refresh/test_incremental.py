"""Incremental refreshes: selected rows, versions by row in a mixed run, and what such a run leaves."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.config.refresh import Refresh
from clara.errors import InputError
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from clara.memory.mixed_versions import FIELD
from clara.memory.store import MemoryStore
from clara.storage.manifest import read_manifest
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.lines import read
from training.loop.run_state import run_states
from training.refresh.ages import Ages
from training.refresh.working_set import RowSelection, WorkingSet, choose_rows, drift_rates, write_drift
from training.stages.joint_stage import JointStage

RUN: dict[str, object] = {
    "joint__train_compressor": "true",
    "joint__steps": 8,
    "joint__refresh__policy": "incremental",
    "joint__refresh__rows": 9,
    "joint__refresh__oldest_share": 0.34,
    "joint__refresh__look_ahead_steps": 2,
    "joint__refresh__switch": "fixed",
    "joint__refresh__start_step": 2,
    "joint__refresh__delta_steps": 1,
    "joint__refresh__every_steps": 2,
    "joint__refresh__keep_versions": 9,
}


def train(world: World, output: Path, **values: object) -> dict[str, object]:
    assert joint.main(["--launcher", "local", *world.sets(output, **RUN | values)]) == 0
    report: dict[str, object] = json.loads((output / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three incremental refreshes that are used, and one after the last step."""
    output = tmp_path_factory.mktemp("incremental-run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.launch.one_process.ProcessWorker", Inline)
        train(world, output)
    return output


@pytest.mark.parametrize(("policy", "expected"), [("full", [2, 4]), ("incremental", [2, 4, 6])])
def test_nothing_is_encoded_that_is_as_the_compressor_makes_it(
    world: World, tmp_path: Path, policy: str, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first step on: neither the initial MEMORY, nor any row again once the compressor is frozen."""
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    values = {
        "joint__refresh__policy": policy,
        "joint__refresh__start_step": 0,
        "joint__refresh__every_steps": 2,
        "joint__compressor_steps": 3,
        "joint__steps": 14,
        "joint__refresh__rows": 0,
        "joint__refresh__share": 0.5,
        "joint__refresh__switch": "asap",
        "joint__refresh__delta_steps": 0,
    }
    train(world, tmp_path, **values)
    (run,) = tmp_path.glob("run-*")
    notes = [json.loads(path.read_text()) for path in sorted(run.glob("refresh-v?.json"))]
    assert [note["snapshot_step"] for note in notes] == expected
    last = list(read(run / "metrics.jsonl").values())[-1]
    assert last["memory_lag_steps"] == last["staleness_steps"] == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["memory_lag_steps"] == 0


# --- the selection ---------------------------------------------------------------------------------------------------


def chosen(lag: list[int], uses: list[int], rate: list[float], **options: float) -> list[int]:
    rows = np.arange(100, 100 + len(lag))
    found = choose_rows(rows, np.array(lag), np.array(uses), np.array(rate), **options)  # type: ignore[arg-type]
    return (found - 100).tolist()


def test_the_choice_in_closed_form() -> None:
    lag, uses = [9, 2, 2, 0, 5, 2], [0, 3, 3, 7, 0, 1]
    even, first_moves = [1.0] * 6, [1.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    # The oldest is 0, then 4; used are 1, 2 (alike; 2 when it drifts more) and 5; 3 is fresh and never chosen.
    assert chosen(lag, uses, even, num_rows=2, oldest_share=0.5) == [0, 1]
    assert chosen(lag, uses, first_moves, num_rows=2, oldest_share=0.5) == [0, 2]
    assert chosen(lag, uses, even, num_rows=3, oldest_share=0.0) == [1, 2, 5]
    assert chosen(lag, uses, even, num_rows=4, oldest_share=0.0) == [0, 1, 2, 5]
    assert chosen(lag, uses, even, num_rows=2, oldest_share=1.0) == [0, 4]
    assert chosen(lag, uses, even, num_rows=99, oldest_share=0.1) == [0, 1, 2, 4, 5]


@given(st.data())
def test_a_choice_keeps_to_its_budget_and_wastes_none_of_it(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 30))
    lag = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    uses = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    rate = data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    num_rows, share = data.draw(st.integers(1, 40)), data.draw(st.floats(0, 1))
    found = chosen(lag, uses, rate, num_rows=num_rows, oldest_share=share)
    assert len(found) == min(num_rows, sum(n > 0 for n in lag))
    assert found == sorted({*found})
    assert all(lag[row] > 0 for row in found)


def test_every_row_has_its_turn() -> None:
    """Only the first three rows are used; a tenth of thirty rows goes to the oldest: 40 rows after 14 refreshes."""
    made, seen = np.zeros(40, np.int64), set()
    for refresh in range(1, 15):
        rows = choose_rows(
            np.arange(40), 10 * refresh - made, np.repeat([1, 0], [3, 37]), np.ones(40), num_rows=6, oldest_share=0.5
        )
        made[rows] = 10 * refresh
        seen |= {*rows.tolist()}
    assert len(seen) == 40
    assert (10 * 14 - made).max() <= 10 * 14


def test_drift_is_measured_and_the_newest_measure_holds(world: World, trained: Path, tmp_path: Path) -> None:
    before, after = MemoryStore.open(world.memory), MemoryStore.open(trained / "memory-v1", mixed=True)
    overlay = np.isin(
        after.shards_of(after.row_ids), [n for n, name in enumerate(after.shard_names) if name.startswith("overlay")]
    )
    rows = after.row_ids[overlay]
    mean = write_drift(tmp_path / "a", before, after, rows, np.full(len(rows), 2), "")
    a, b = (store.memory(rows).reshape(len(rows), -1).astype(np.float64) for store in (before, after))
    drift = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert mean == pytest.approx(drift.mean(), abs=1e-6)
    table = pq.read_table(tmp_path / "a").to_pydict()
    assert table["row_id"] == rows.tolist()
    np.testing.assert_allclose(table["drift"], drift, atol=1e-6)
    write_drift(tmp_path / "b", before, before, rows[:1], np.array([3]), str(tmp_path / "a"))
    rates = drift_rates(after.row_ids, str(tmp_path / "b"))
    assert rates[overlay][0] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(rates[overlay][1:], drift[1:] / 2, atol=1e-6)
    np.testing.assert_allclose(rates[~overlay], np.mean(rates[overlay]))
    assert (drift_rates(after.row_ids, "") == 1).all()


def test_budget_is_rows_or_a_share() -> None:
    assert [Refresh(rows=rows, share=0.25).num_rows(40) for rows in (0, 7, 99)] == [10, 7, 40]
    assert Refresh(share=0.001).num_rows(40) == 1


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_mixes_versions_and_knows_each_rows(world: World, trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert [span["first_step"] for span in report["versions_by_step"]] == [1, 4, 6, 8]
    run = next(trained.glob("run-*"))
    state = json.loads((run / "versions.json").read_text())
    steps = {made: step for made, step in state["steps"].items()}
    assert sorted(steps.values()) == [0, 2, 4, 6]
    held = [MemoryStore.open(trained / f"memory-v{n}", accept=[*steps], verify=True) for n in (1, 2, 3)]
    for number, (store, parent) in enumerate(zip(held, [MemoryStore.open(world.memory), *held[:-1]], strict=True), 1):
        assert np.array_equal(store.row_ids, parent.row_ids)
        lag = Ages(store, steps, 8).lag(store.row_ids, 2 * number)
        fresh = store.row_ids[lag == 0]
        assert len(fresh) == 9
        old = store.row_ids[lag > 0]
        # What was not chosen is the parent's to the bit; what was is not.
        assert np.array_equal(store.memory(old), parent.memory(old))
        assert (np.abs(store.memory(fresh) - parent.memory(fresh)).reshape(9, -1).max(axis=1) > 0).all()
    # Three of the nine are the oldest, whatever their use, so that some row of each version is of the base.
    assert {*Ages(held[2], steps, 8).lag(held[2].row_ids, 6).tolist()} == {0, 2, 4, 6}
    metrics = read(run / "metrics.jsonl")
    assert [v["used_memory_version"] for v in metrics.values()] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert metrics[4]["memory_lag_steps"] == pytest.approx((9 * 1 + 31 * 3) / 40)
    assert metrics[3]["refresh_rows"] == 9.0
    assert metrics[3]["refresh_drift"] > 0
    # Rows in use are chosen first: pools lack fewer updates than MEMORY as a whole.
    assert metrics[4]["pool_lag_steps"] < metrics[4]["memory_lag_steps"]
    # Only the overlays are counted as written.
    sizes = {f["path"]: f["bytes"] for f in read_manifest(trained / "memory-v1")["files"]}
    assert report["refreshes"][0]["bytes"] == sum(size for path, size in sizes.items() if path.startswith("overlay-"))
    assert report["refreshes"][0]["rows"] == 9


def test_the_working_set_is_chosen_first(world: World, trained: Path) -> None:
    run = next(trained.glob("run-*"))
    selection = RowSelection.load(run / "selection-v1.json")
    # Two steps of four questions have passed, and two are to come, whose eight questions the index is asked for.
    assert selection.questions
    assert sum(selection.uses) >= 2 * 4 * 5
    store = MemoryStore.open(trained / "memory-v1", mixed=True)
    overlays = [n for n, name in enumerate(store.shard_names) if name.startswith("overlay")]
    fresh = {*store.row_ids[np.isin(store.shards_of(store.row_ids), overlays)].tolist()}
    oldest = {*store.row_ids[:3].tolist()}
    assert oldest <= fresh
    assert fresh - oldest <= {*selection.row_ids}


def test_a_mixed_memory_is_no_use_outside_and_a_final_encoding_is(world: World, trained: Path, tmp_path: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["memory_lag_steps"] == 8
    assert FIELD in read_manifest(report["memory"])
    with pytest.raises(InputError, match=r"mixed MEMORY.*joint\.refresh\.final = true"):
        joint.main(
            [
                "--launcher",
                "local",
                *world.sets(tmp_path / "b", checkpoint=trained / "checkpoint", memory=report["memory"]),
            ]
        )


def test_a_final_encoding_after_it_is_whole(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    report = train(world, tmp_path, joint__steps=5, joint__refresh__final="true")
    assert report["memory_lag_steps"] == 0
    settings = EncodingSettings(96, 0, key_size=32, key_seed=0, dtype="float32")
    store = MemoryStore.open(str(report["memory"]), accept=[of_checkpoint(tmp_path / "checkpoint", settings)])
    assert len(store) == 40


@pytest.mark.slow
def test_resuming_between_refreshes_chooses_the_same_rows(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a run state: uses since the last snapshot, and the ages of all rows, are taken up."""

    class KilledError(Exception):
        """As by a signal."""

    def killed_at(step: int):  # type: ignore[no-untyped-def]
        def after(self, number, engine):  # type: ignore[no-untyped-def]
            if number == step:
                raise KilledError
            return inner(self, number, engine)

        return after

    inner = JointStage.after_step
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    for step in (3, 6):
        monkeypatch.setattr(JointStage, "after_step", killed_at(step))
        with pytest.raises(KilledError):
            train(world, tmp_path, joint__checkpoint_every=1)
    monkeypatch.setattr(JointStage, "after_step", inner)
    train(world, tmp_path, joint__checkpoint_every=1)
    assert run_states(next(tmp_path.glob("run-*")))
    for number in (1, 2, 3):
        one, other = (MemoryStore.open(folder / f"memory-v{number}", mixed=True) for folder in (trained, tmp_path))
        assert [f.hash for f in one.shard_fingerprints] == [f.hash for f in other.shard_fingerprints]
        assert np.array_equal(one.shards_of(one.row_ids), other.shards_of(other.row_ids))
        assert np.array_equal(one.memory(one.row_ids), other.memory(other.row_ids))


def test_a_working_set_is_taken_up_as_it_was() -> None:
    one, other = WorkingSet(), WorkingSet()
    one.saw([[3, 4], [4]])
    other.restore(json.loads(json.dumps(one.state())))
    assert other.uses == one.uses == {3: 1, 4: 2}


def test_a_choice_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "selection.json").write_text('{"rows": 3}')
    for name in ("selection.json", "gone.json"):
        with pytest.raises(InputError, match=r"not the row selection of an incremental refresh"):
            RowSelection.load(tmp_path / name)
