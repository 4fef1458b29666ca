"""Evaluation on held-out questions during training: stored and fresh memory, against a direct computation."""

from pathlib import Path

import pytest
import torch

from clara.config.model import Backbone
from clara.config.stages import Joint
from clara.config.tree import Config, Retrieval
from clara.data.questions import Question, fold_of, read_questions
from clara.errors import InputError
from clara.index.search import MemoryIndex
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.model.geometry import cosine
from clara.model.model import ClaraModel
from clara.retrieval.pools import QuestionRows
from tests.helpers.joint_world import World
from training.run.run import build_held_out
from training.stages.candidates import Candidates
from training.stages.held_out import HeldOut


def parts(world: World) -> tuple[ClaraModel, Candidates, list[Question]]:
    model, store = load_checkpoint(world.checkpoint, Backbone(dtype="float32")), MemoryStore.open(world.memory)
    candidates = Candidates(Joint(published_pool=True), Retrieval(first_level=20), seed=0, store=store, index=None)
    return model, candidates, read_questions(world.questions)[:12]


def test_memory_that_fits_its_model_ranks_as_fresh_memory_does(world: World) -> None:
    model, candidates, questions = parts(world)
    found = HeldOut(questions, num_selected=2, published_pool=True, fresh=True).alone(model, candidates)
    for depth in (1, 5, 20):
        assert found[f"held_out_fresh_pool_recall_at_{depth}"] == found[f"held_out_pool_recall_at_{depth}"]
    assert found["held_out_fresh_answer_nats"] == pytest.approx(found["held_out_answer_nats"], abs=1e-3)


def test_figures_of_a_moved_compressor_are_as_computed_directly(world: World) -> None:
    model, candidates, questions = parts(world)
    store, rng = candidates.store, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.role_parameters("compressor"):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    found = HeldOut(questions, num_selected=2, published_pool=True, fresh=True).alone(model, candidates)
    assert found["held_out_fresh_answer_nats"] != pytest.approx(found["held_out_answer_nats"], abs=1e-3)
    hits = {"": [0.0, 0.0], "fresh_": [0.0, 0.0]}
    nats, tokens = {"": 0.0, "fresh_": 0.0}, 0.0
    for q in questions:
        banned = {row for document in q.exclude_ids for row in store.rows_of(document)}
        rows = sorted({row for document in q.candidate_ids for row in store.rows_of(document)} - banned)
        right = {row for document in q.positive_ids for row in store.rows_of(document)} - banned
        query = model.encode_questions([q.question])
        fresh = torch.cat([model.compress([ids]) for ids in candidates.token_ids(rows, model)])
        for name, memory in (("", torch.from_numpy(store.memory(rows))), ("fresh_", fresh)):
            order = cosine(query, memory[None])[0].argsort(descending=True).tolist()
            for place, depth in enumerate((1, 5)):
                hits[name][place] += bool(right & {rows[i] for i in order[:depth]})
            likelihood, count = model.answer_log_likelihood([q.question], [memory[order[:2]]], [q.answers[0]])
            nats[name] -= float(likelihood.sum())
        tokens += float(count.sum())
    for name in hits:
        for place, depth in enumerate((1, 5)):
            assert found[f"held_out_{name}pool_recall_at_{depth}"] == pytest.approx(hits[name][place] / len(questions))
        assert found[f"held_out_{name}answer_nats"] == pytest.approx(nats[name] / tokens, abs=2e-3)


def test_without_pools_and_index_nothing_is_found_and_the_right_memory_is_still_read(world: World) -> None:
    model, candidates, questions = parts(world)
    found = HeldOut(questions[:2], num_selected=2, fresh=True).alone(model, candidates)
    assert found["held_out_recall_at_20"] == 0.0
    assert found["held_out_right_nats"] > 0
    assert not any("fresh" in name for name in found)


def test_fewer_questions_than_ranks_are_refused(world: World) -> None:
    held_out = HeldOut(read_questions(world.questions)[:2], num_selected=2)
    held_out.check(2)
    with pytest.raises(InputError, match=r"2 held-out questions for 3 ranks.*raise joint\.evaluate_questions"):
        held_out.check(3)


def test_the_share_of_training_targets_among_the_first_five(world: World) -> None:
    model, store = load_checkpoint(world.checkpoint, Backbone(dtype="float32")), MemoryStore.open(world.memory)
    index = MemoryIndex.open(world.index, store)
    candidates = Candidates(Joint(), Retrieval(first_level=20), seed=0, store=store, index=index)
    questions = read_questions(world.questions)
    asked, trained = questions[:6], questions[6:12]
    targets = {row for q in trained for row in QuestionRows.of(q, store).positive}
    shares = []
    for q in asked:
        query = model.encode_questions([q.question]).numpy()
        rows, _ = index.search(query, 5, 20, [QuestionRows.of(q, store).excluded])
        shares.append(len(targets & {*rows[0].tolist()}) / 5)
    found = HeldOut(asked, num_selected=2, trained=trained).alone(model, candidates)
    assert found["held_out_trained_at_5"] == pytest.approx(sum(shares) / 6)
    assert sum(shares)


def test_the_fold_that_is_kept_from_training_can_be_looked_at(world: World, tmp_path: Path) -> None:
    given = {"questions": world.questions, "joint": {"evaluate_every": 1, "evaluate_on": "fold", "fit_share": 0.3}}
    config = Config.model_validate(given | {"questions": str(world.questions)})
    inside, _ = fold_of(read_questions(world.questions, "train"), 0.3)
    held_out = build_held_out(config, [])
    assert held_out is not None
    with pytest.raises(InputError, match=f"{len(inside)} held-out questions for 1000 ranks"):
        held_out.check(1000)
    given["joint"] = given["joint"] | {"fit_share": 0.0}
    with pytest.raises(InputError, match=r"no held-out question with a positive of the fold of joint\.fit_share=0"):
        build_held_out(Config.model_validate(given | {"questions": str(world.questions)}), [])
