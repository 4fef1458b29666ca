"""Staleness on a canary set: figures in closed form and by direct computation, on one and two ranks; the trigger."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from clara.config.model import Backbone
from clara.config.refresh import Refresh
from clara.data.questions import Question, read_questions
from clara.errors import InputError
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from tests.helpers.joint_world import Inline, World
from training import joint
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.canary import Canary, canary_questions, canary_rows
from training.refresh.policy import policy_of
from training.registry.curves import draw


class Ranks:
    """Collectives of ranks that are threads of this process."""

    def __init__(self, world: int) -> None:
        self.world, self._given = world, [torch.empty(0)] * world
        self._barrier = threading.Barrier(world)

    def gather(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self._given[rank] = tensor
        self._barrier.wait(60)
        gathered = torch.stack(self._given)
        self._barrier.wait(60)
        return gathered


class RankEngine(LocalEngine):
    """One of them; enough to measure."""

    def __init__(self, rank: int, ranks: Ranks) -> None:
        self.rank, self.world, self._ranks = rank, ranks.world, ranks

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return self._ranks.gather(self.rank, rows)

    def sum(self, values) -> list[float]:  # type: ignore[no-untyped-def]
        return self.gather(torch.tensor(values, dtype=torch.float64)).sum(dim=0).tolist()


def drifted(world: World) -> ClaraModel:
    """The model of the world, its compressor moved."""
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32"))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    return model


def canary(world: World, num_rows: int = 12) -> tuple[Canary, MemoryStore, list[Question]]:
    store = MemoryStore.open(world.memory)
    questions = canary_questions(read_questions(world.questions), num_rows // 2)
    return Canary(questions, store, num_rows=num_rows, num_selected=3), store, questions


def test_the_set_is_fixed_and_holds_the_positives(world: World) -> None:
    source, store, questions = canary(world)
    assert len(source.rows) == 12
    assert {*source.rows} >= {store.rows_of(q.positive_ids[0])[0] for q in questions}
    assert np.array_equal(source.rows, canary(world)[0].rows)
    assert np.array_equal(canary_rows(questions, store, 1000), store.row_ids)
    assert {q.split for q in questions} == {"unseen"}
    assert {q.split for q in canary_questions(read_questions(world.questions, "train"), 4)} == {"train"}


def test_figures_in_closed_form(world: World) -> None:
    """Rows along the axes: question q matches row q. Fresh memory swaps rows 0 and 1, halves the rest."""
    store = MemoryStore.open(world.memory)
    # Enough rows that the first three of them are the positives of three questions.
    rows = store.row_ids[:6].tolist()
    documents = [chunk.document_id for chunk in store.records(rows)]
    questions = [Question(str(n), "?", ("a",), positive_ids=(documents[n],)) for n in range(3)]
    source = Canary(questions, store, num_rows=6, num_selected=1)
    source.rows = np.array(rows)
    axes = np.eye(6, dtype=np.float32).reshape(6, 2, 3)
    fresh = 0.5 * axes[[1, 0, 2, 3, 4, 5]]
    cosine, lowest, overlap, stored, found, asked = source.compare(2 * axes[:3], axes, fresh)
    assert (cosine, lowest) == (pytest.approx(4 / 6), 0.0)
    assert overlap == pytest.approx(1 / 3)
    assert (stored, found) == (1.0, pytest.approx(1 / 3))
    assert asked == 1.0
    assert source.compare(axes[:3], axes, axes)[:5] == [1.0, 1.0, 1.0, 1.0, 1.0]


def test_memory_that_fits_its_model_is_not_stale(world: World, tiny_model: ClaraModel) -> None:
    source, store, _ = canary(world)
    figures = source.measure(tiny_model, store, RankEngine(0, Ranks(1)))
    assert figures["canary_cosine_lowest"] > 0.9999
    assert figures["canary_overlap"] == 1.0
    assert figures["canary_recall_gap"] == 0.0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_moved_compressor_measures_as_computed_directly(world: World, num_ranks: int) -> None:
    source, store, questions = canary(world, num_rows=13)
    model = drifted(world)
    texts = [f"{c.title}\n{c.text}" if c.title else c.text for c in store.records(source.rows)]
    fresh = torch.cat([model.compress([model.document_ids(t)]) for t in texts]).flatten(1)
    stored = torch.from_numpy(store.memory(source.rows)).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(fresh, stored)
    query = torch.cat([model.encode_questions([q.question]) for q in questions]).flatten(1)
    shared = []
    for number in range(len(questions)):
        old, new = (
            {*torch.nn.functional.cosine_similarity(query[number][None], m).topk(3).indices.tolist()}
            for m in (stored, fresh)
        )
        shared.append(len(old & new) / 3)
    ranks, results = Ranks(num_ranks), [{}] * num_ranks
    # Loaded one after the other: transformers patches torch as it loads a model, for all threads of a process.
    models = [drifted(world) for _ in range(num_ranks)]

    def measure(rank: int) -> None:
        results[rank] = source.measure(models[rank], store, RankEngine(rank, ranks))

    threads = [threading.Thread(target=measure, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for figures in results:
        assert figures["canary_cosine"] == pytest.approx(float(cosine.mean()), abs=1e-4)
        assert figures["canary_cosine_lowest"] == pytest.approx(float(cosine.min()), abs=1e-4)
        assert figures["canary_overlap"] == pytest.approx(np.mean(shared))
    assert float(cosine.mean()) < 0.99
    assert all({k: v for k, v in r.items() if k != "canary_seconds"}.items() <= results[0].items() for r in results)


def test_questions_without_a_positive_leave_the_recalls_out(world: World, tiny_model: ClaraModel) -> None:
    store = MemoryStore.open(world.memory)
    source = Canary([Question("q", "Who?", ("a",))], store, num_rows=5, num_selected=2)
    figures = source.measure(tiny_model, store, RankEngine(0, Ranks(1)))
    assert {*figures} == {"canary_cosine", "canary_cosine_lowest", "canary_overlap", "canary_seconds"}


def test_a_snapshot_is_due_by_measure_or_by_steps() -> None:
    measured = Refresh(policy="full", trigger_cosine=0.9, canary_every=1, start_step=2)
    assert [policy_of(measured).due(n, cosine) for n, cosine in ((1, 0.5), (2, 0.95), (2, 0.9), (3, 0.89))] == [
        False,
        False,
        False,
        True,
    ]
    both = measured.model_copy(update={"every_steps": 4})
    assert [n for n in range(9) if policy_of(both).due(n)] == [2, 6]
    assert policy_of(both).due(3, 0.5)


@pytest.mark.parametrize("values", [{"joint__refresh__canary_every": 2}, {"joint__refresh__policy": "full"}])
def test_a_trigger_without_policy_or_measure_is_refused(
    world: World, tmp_path: Path, values: dict[str, object]
) -> None:
    with pytest.raises(InputError, match=r"trigger_cosine is 0\.9, policy .*set policy and canary_every"):
        joint.main(["--launcher", "local", *world.sets(tmp_path, joint__refresh__trigger_cosine=0.9, **values)])


@pytest.mark.slow
def test_a_run_measures_and_the_measure_starts_a_refresh(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.launch.one_process.ProcessWorker", Inline)
    values = {
        "joint__train_compressor": "true",
        "joint__steps": 6,
        "joint__optimiser__learning_rate": 1e-2,
        "joint__refresh__policy": "full",
        "joint__refresh__switch": "fixed",
        "joint__refresh__delta_steps": 1,
        "joint__refresh__canary_every": 1,
        "joint__refresh__canary_rows": 10,
    }
    sets = world.sets(tmp_path / "steps", **values | {"joint__refresh__start_step": 4})
    assert joint.main(["--launcher", "local", *sets]) == 0
    report = json.loads((tmp_path / "steps/report.json").read_text())
    by_step = {line["step"]: line for line in report["staleness"]}
    assert [*by_step] == [1, 2, 3, 4, 5, 6]
    # It drifts, and the switch ahead of step 6, announced in step 5, brings it back to a compressor one update older.
    assert 1 > by_step[1]["cosine"] > by_step[2]["cosine"] > by_step[4]["cosine"]
    assert by_step[5]["cosine"] > by_step[4]["cosine"]
    metrics = read(next((tmp_path / "steps").glob("run-*")) / "metrics.jsonl")
    assert metrics[3]["canary_cosine"] == by_step[3]["cosine"]
    assert "staleness.png" in {path.name for path in draw(metrics, tmp_path / "curves")}

    threshold = (by_step[2]["cosine"] + by_step[3]["cosine"]) / 2
    assert (
        joint.main(
            [
                "--launcher",
                "local",
                *world.sets(tmp_path / "measured", **values, joint__refresh__trigger_cosine=threshold),
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "measured/report.json").read_text())
    assert report["refreshes"][0]["snapshot_step"] == 3
    assert [span["first_step"] for span in report["versions_by_step"][:2]] == [1, 5]
