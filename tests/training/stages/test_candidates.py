"""Pools of candidates: what is in them, what never is, and that they depend on nothing but question, step and seed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clara.config.model import Backbone
from clara.config.stages import Joint
from clara.config.tree import Config, Retrieval
from clara.data.questions import Question, read_questions, shuffled_answers
from clara.data.records import input_text
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.embedding import DenseEncoder
from clara.index.search import MemoryIndex
from clara.memory.store import MemoryStore
from clara.model.checkpoint import load_checkpoint
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.pools import QuestionRows, fill, interleave
from clara.retrieval.ranker import Queries
from clara.storage.tables import read_table
from tests.helpers import embedding_model
from tests.helpers.joint_world import World
from tests.helpers.memories import random_memory, write_memory
from training.loop.engine import LocalEngine
from training.loop.loop import sample
from training.refresh.versions import Versions
from training.stages.candidates import Candidates, generator
from training.stages.joint_stage import JointStage
from training.stages.question_pools import QuestionPools

ROWS = st.lists(st.integers(0, 30), max_size=12, unique=True)


def test_interleave_takes_turns_and_keeps_the_first_of_equals() -> None:
    assert interleave([1, 2, 3], [2, 4], [5]) == [1, 2, 5, 4, 3]


@given(own=ROWS, others=st.lists(ROWS, max_size=4), banned=ROWS, size=st.integers(1, 12), seed=st.integers(0, 5))
def test_filled_pool(own: list[int], others: list[list[int]], banned: list[int], size: int, seed: int) -> None:
    own = [row for row in own if row not in banned]
    pool = fill(own, others, banned, size, generator(seed, 0, 0))
    everything = {*own, *(row for rows in others for row in rows)} - {*banned}
    assert pool[: len(own)] == own[:size]
    assert len(pool) == len({*pool}) == min(size, len({*own[:size]} | (everything if len(own) < size else set())))
    assert {*pool} <= everything
    assert pool == fill(own, others, banned, size, generator(seed, 0, 0))


def candidates(world: World, **settings: object) -> Candidates:
    store = MemoryStore.open(world.memory)
    index = MemoryIndex.open(world.index, store)
    joint = Joint.model_validate({"num_candidates": 8, "num_selected": 2, "from_index": 4, "from_bm25": 2, **settings})
    return Candidates(joint, Retrieval(first_level=20), seed=3, store=store, index=index)


def drawn(
    world: World, step: int = 0, **settings: object
) -> tuple[list[Question], list[QuestionRows], list[list[int]], MemoryStore]:
    source = candidates(world, **settings)
    questions = read_questions(world.questions, "train")[:6]
    known = [QuestionRows.of(q, source.store) for q in questions]
    query = torch.randn(
        6, source.store.num_memory_tokens, source.store.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    own = source.own(questions, known, query)
    return questions, known, source.pools(own, range(6), known, step), source.store


def test_pools_are_full_and_hold_no_document_that_is_kept_out(world: World) -> None:
    questions, _, pools, store = drawn(world)
    for question, pool in zip(questions, pools, strict=True):
        assert len(pool) == len({*pool}) == 8
        assert not {chunk.document_id for chunk in store.records(pool)} & {*question.exclude_ids}


def test_injected_positives_are_always_there(world: World) -> None:
    _, known, pools, _ = drawn(world, inject_positives=True)
    assert all(set(k.positive) <= {*pool} for k, pool in zip(known, pools, strict=True))


def test_injection_cannot_bring_back_what_is_kept_out(world: World) -> None:
    store = MemoryStore.open(world.memory)
    question = Question("q", "?", ("a",), positive_ids=("doc-00", "doc-01"), exclude_ids=("doc-01",))
    assert QuestionRows.of(question, store).positive == tuple(store.rows_of("doc-00"))


def test_bm25_reads_each_shard_once_and_ranks_as_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = write_memory(tmp_path / "memory", random_memory(4200), num_shards=7)
    read: list[str] = []

    def recording(path: Path, columns: list[str] | None = None) -> object:
        read.extend([path.parent.name] * (columns is None or "text" in columns))
        return read_table(path, columns)

    monkeypatch.setattr("clara.memory.store.read_table", recording)
    monkeypatch.setattr("clara.memory.store._NUM_TABLES", 2)  # far fewer tables are kept than there are shards
    store = MemoryStore.open(memory)
    source = Candidates(Joint(from_index=0, from_bm25=9), Retrieval(first_level=20), seed=3, store=store, index=None)
    questions = [Question(f"q{n}", f"Which is number {n} of these?", ("a",)) for n in range(60)]
    found = source.own(questions, [QuestionRows((), frozenset(), ())] * 60, None)
    assert sorted(read) == sorted(store.shard_names)
    texts = [input_text(chunk.title, chunk.text) for chunk in store.records(store.row_ids)]
    rows, _ = Bm25.of_texts(texts, store.row_ids).search([q.question for q in questions], 9)
    assert found == [[row for row in line if row != -1] for line in rows.tolist()]
    assert any(found)


def test_bm25_is_that_of_the_index_where_there_is_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore.open(world.memory)
    expected = Bm25.of_memory(store)

    def refuse(*_: object) -> None:
        raise AssertionError("BM25 is built in RAM")

    monkeypatch.setattr(Bm25, "of_memory", refuse)
    source = candidates(world, from_index=0, from_bm25=4)
    questions = read_questions(world.questions, "train")[:6]
    known = [QuestionRows.of(question, store) for question in questions]
    found = source.own(questions, known, None)
    rows = expected.search([q.question for q in questions], 4, [k.excluded for k in known])[0]
    assert found == [[row for row in line if row != -1] for line in rows.tolist()]
    assert all(found)


def test_dense_vectors_of_the_index_are_a_source(world: World, tmp_path: Path) -> None:
    model = str(embedding_model.write(tmp_path / "model"))
    build_index(world.memory, tmp_path / "index", "Flat", num_queries=0, dense=DenseEncoder(model))
    store = MemoryStore.open(world.memory)
    index = MemoryIndex.open(tmp_path / "index", store)
    joint = Joint(from_index=0, from_bm25=0, from_dense=4)
    source = Candidates(joint, Retrieval(first_level=20, dense_model=model), seed=3, store=store, index=index)
    questions = read_questions(world.questions, "train")[:6]
    known = [QuestionRows.of(question, store) for question in questions]
    assert index.artefact is not None
    expected = DenseRanker.open(index.artefact, store, DenseEncoder(model)).rank(Queries.of(questions, store), 4)
    assert source.own(questions, known, None) == expected


@pytest.mark.parametrize("values", [{"from_bm25": 0}, {"from_bm25": 2, "published_pool": True}])
def test_bm25_is_not_built_where_nothing_asks_it(
    world: World, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("BM25 is built")

    monkeypatch.setattr(Bm25, "__init__", refuse)
    questions = read_questions(world.questions, "train")[:2]
    source = candidates(world, **values)
    query = torch.randn(2, source.store.num_memory_tokens, source.store.hidden_size)
    assert all(source.own(questions, [QuestionRows.of(q, source.store) for q in questions], query))


def test_published_pool_is_the_pool(world: World) -> None:
    questions, _, pools, store = drawn(world, published_pool=True, in_batch=False)
    for question, pool in zip(questions, pools, strict=True):
        wanted = {d for d in question.candidate_ids if d not in question.exclude_ids}
        assert {chunk.document_id for chunk in store.records(pool)} == wanted


def test_what_fills_a_pool_changes_with_the_step(world: World) -> None:
    assert drawn(world, step=0)[2] == drawn(world, step=0)[2] != drawn(world, step=1)[2]


def test_question_without_any_candidate_is_refused(world: World) -> None:
    source = candidates(world, from_index=0, from_bm25=0, in_batch=True)
    with pytest.raises(InputError, match=r"no candidate at all.*joint\.from_index"):
        source.pools([[], []], [0], [QuestionRows((), frozenset(), ())], 4)


def test_memory_of_smaller_pools_is_padded_and_marked(world: World) -> None:
    source = candidates(world)
    rows = source.store.row_ids[:5].tolist()
    memory, valid = source.memory([rows[:3], rows], 5)
    assert valid.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert torch.equal(memory[1], torch.from_numpy(source.store.memory(rows)))
    assert not memory[0, 3:].any()


class OneOf(LocalEngine):
    """A rank of several whose partners' rows are known: enough to draw batches."""

    def __init__(self, rank: int, world: int, partners: list[torch.Tensor]) -> None:
        self.rank, self.world, self._partners = rank, world, partners

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        self._partners[self.rank] = rows
        return torch.stack(self._partners)


def stage(world: World, output: Path, model: object, micro_batch: int) -> JointStage:
    config = Config.model_validate(
        {
            "checkpoint": str(world.checkpoint),
            "memory": str(world.memory),
            "index": str(world.index),
            "backbone": {"dtype": "float32"},
            "joint": {
                "questions_per_step": 4,
                "micro_batch": micro_batch,
                "num_candidates": 8,
                "num_selected": 2,
                "from_index": 3,
                "from_bm25": 2,
                "right_memory_share": 0.5,
            },
        }
    )
    questions = read_questions(world.questions, "train")
    return JointStage(model, questions, config, Versions(config, output, output, None, 1))  # type: ignore[arg-type]


def test_batches_do_not_depend_on_ranks_and_micro_batches(world: World, tmp_path: Path, tiny_model: object) -> None:
    alone = stage(world, tmp_path, tiny_model, micro_batch=4)
    alone.begin(OneOf(0, 1, [torch.empty(0)]))
    (whole,) = alone.micro_batches(2, 0, 1)
    shared: list[torch.Tensor] = [torch.full((2, 8), -1)] * 2
    ranks = [stage(world, tmp_path, tiny_model, micro_batch=1) for _ in range(2)]
    for rank, each in enumerate(ranks):
        each.begin(OneOf(rank, 2, shared))
        each.micro_batches(2, rank, 2)  # first round: everybody's own candidates become known
    parts = {rank: each.micro_batches(2, rank, 2) for rank, each in enumerate(ranks)}
    for place in range(4):
        part = parts[place % 2][place // 2]
        assert part.questions[0] == whole.questions[place]
        assert torch.equal(part.memory[0], whole.memory[place])
        assert torch.equal(part.positive[0], whole.positive[place])
        one, other = part.right_memory[0], whole.right_memory[place]
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_shuffled_answers_keep_every_answer_and_give_nobody_their_own(world: World) -> None:
    questions = read_questions(world.questions, "train")
    shuffled = shuffled_answers(questions, torch.randperm(len(questions)).tolist())
    assert sorted(q.answers for q in shuffled) == sorted(q.answers for q in questions)
    given_away = [(a.answers, b.answers) for a, b in zip(questions, shuffled, strict=True)]
    assert all(a != b for a, b in given_away if len({q.answers for q in questions}) == len(questions))
    assert [q.question for q in shuffled] == [q.question for q in questions]


def test_with_balanced_targets_an_epoch_asks_for_each_of_them_once(world: World) -> None:
    source = candidates(world)
    questions = read_questions(world.questions, "train")[:6]
    asked = [*questions, *(replace(questions[0], question_id=f"more-{n}") for n in range(6))]
    model, settings = load_checkpoint(world.checkpoint, Backbone(dtype="float32")), Joint(questions_per_step=3)
    pools = QuestionPools(model, asked, settings.model_copy(update={"balance_targets": True}), 0, source)
    epoch = [asked[number].positive_ids for step in range(2) for number in pools.of_step(step)]
    assert sorted(epoch) == sorted(q.positive_ids for q in questions)
    plain = QuestionPools(model, asked, settings, 0, source)
    assert plain.of_step(0) == sample(0, 0, 3, len(asked))
