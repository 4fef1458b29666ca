"""Ranking by the fused score: against brute force, bounded unions, and what a source that is missing leads to."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clara import ask
from clara.config.model import Fusion, Score
from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.index.build import build_index
from clara.index.embedding import DenseEncoder
from clara.model.artefact import Checkpoint
from clara.model.question_mean import copy_with_score
from clara.retrieval import fused
from clara.retrieval.bm25 import Bm25
from clara.retrieval.dense import DenseRanker
from clara.retrieval.filter import Filter
from clara.retrieval.fused import FusedRanker
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from tests.helpers import embedding_model
from tests.helpers.evaluation_world import World

QUESTIONS = ["Who is the mayor of Arlen on the Tamo?", "What does the market of Jorvik on the Wend sell?"]


@dataclasses.dataclass(frozen=True)
class Parts:
    checkpoint: Path
    memory: Path
    index: Path
    model: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embedding_model.write(tmp_path_factory.mktemp("dense") / "model"))


@pytest.fixture(scope="module")
def parts(evaluation_artefacts: World, model: str, tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A CHECKPOINT whose score weighs all sources, and an INDEX that has all of them."""
    folder, world = tmp_path_factory.mktemp("fused"), evaluation_artefacts
    index = folder / "index"
    build_index(world.memory, index, "Flat", num_queries=0, dense=DenseEncoder(model))
    fusion = Fusion(
        weights={"memory": 0.3, "bm25": 0.8, "dense": 2.0}, temperature=0.05, dense_model=DenseEncoder(model).hash
    )
    return Parts(with_fusion(world.checkpoint, folder / "checkpoint", fusion), world.memory, index, model)


def with_fusion(checkpoint: Path, folder: Path, fusion: Fusion) -> Path:
    copy_with_score(Checkpoint.open(checkpoint), folder, Score(), None, fusion=fusion, recipe={"made_by": "tests"})
    return folder


def opened(parts: Parts, *, candidates: int = 100, exact_rows: int = 0) -> Retriever:
    settings = Retrieval(dense_model=parts.model, candidates=candidates, exact_rows=exact_rows)
    return Retriever.open(parts.checkpoint, parts.memory, parts.index, retrieval=settings)


def every_source(parts: Parts, retriever: Retriever) -> dict[str, Ranker]:
    assert retriever.index is not None
    assert retriever.index.artefact is not None
    artefact = retriever.index.artefact
    return {
        "memory": retriever.memory_ranker,
        "bm25": Bm25.open(artefact, retriever.store),
        "dense": DenseRanker.open(artefact, retriever.store, DenseEncoder(parts.model)),
    }


def all_z(parts: Parts, retriever: Retriever, queries: Queries) -> np.ndarray:
    """Score z of every row, by the definition."""
    rows = [retriever.store.row_ids.tolist()] * len(queries.texts)
    of = {name: np.array(r.score(queries, rows)) for name, r in every_source(parts, retriever).items()}
    return np.asarray(0.3 * of["memory"] / 0.05 + 0.8 * of["bm25"] + 2.0 * of["dense"])


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_a_search_that_takes_every_row_equals_brute_force(parts: Parts, exact_rows: int) -> None:
    retriever = opened(parts, candidates=10_000 if not exact_rows else 1, exact_rows=exact_rows)
    queries = Queries(QUESTIONS, [()] * 2, retriever.queries(QUESTIONS))
    rows = retriever.store.row_ids
    for z, hits in zip(all_z(parts, retriever, queries), retriever.hits(QUESTIONS, 7), strict=True):
        order = np.argsort(-z, kind="stable")[:7]
        assert [hit.row_id for hit in hits] == rows[order].tolist()
        assert [hit.score for hit in hits] == pytest.approx(z[order].tolist(), abs=1e-3)
        for hit in hits:
            assert sum(hit.contributions.values()) == pytest.approx(hit.score, abs=1e-4)


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_a_hit_names_the_sources_that_rank_it_among_their_best(parts: Parts, exact_rows: int) -> None:
    retriever = opened(parts, candidates=5, exact_rows=exact_rows)
    queries = Queries(QUESTIONS, [()] * 2, retriever.queries(QUESTIONS))
    found = {name: ranker.rank(queries, 5) for name, ranker in every_source(parts, retriever).items()}
    for number, hits in enumerate(retriever.hits(QUESTIONS, 5)):
        for hit in hits:
            assert hit.sources == tuple(name for name, lists in found.items() if hit.row_id in lists[number])
    assert any(hit.sources for hits in retriever.hits(QUESTIONS, 5) for hit in hits)


def test_an_exact_search_ranks_no_source_by_itself(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = opened(parts, exact_rows=10_000)
    monkeypatch.setattr(Bm25, "rank", lambda self, queries, k: pytest.fail("BM25 has ranked"))
    assert len(retriever.hits(QUESTIONS[:1], 3)[0]) == 3


def test_questions_in_parts_find_the_same_to_the_bit(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion = Fusion(weights={"memory": 0.3, "bm25": 0.8}, temperature=0.05)
    retriever = opened(parts, exact_rows=10_000)
    ranker = FusedRanker(every_source(parts, retriever), fusion, retriever.store.row_ids, retriever.settings)
    questions = [*QUESTIONS, "Who is the mayor of Jorvik?"]
    queries = Queries(questions, [[int(retriever.store.row_ids[3])], [], []], retriever.queries(questions))
    together = ranker.hits(queries, 9)
    monkeypatch.setattr(fused, "_PAIRS_AT_ONCE", 1)  # of one question each
    assert ranker.hits(queries, 9) == together
    assert ranker.hits(queries.part(1, 3), 9) == together[1:]


def test_more_candidates_than_rows_take_no_memory(parts: Parts) -> None:
    every, beyond = opened(parts, candidates=10_000), opened(parts, candidates=10**12)
    queries = Queries(QUESTIONS, [()] * 2, every.queries(QUESTIONS))
    assert beyond.hits(QUESTIONS, 7) == every.hits(QUESTIONS, 7)
    for name, ranker in every_source(parts, every).items():
        assert ranker.rank(queries, 10**12) == ranker.rank(queries, 10_000), name


def test_candidates_are_the_union_of_every_sources_best(parts: Parts) -> None:
    retriever = opened(parts, candidates=3)
    queries = Queries(QUESTIONS, [()] * 2, retriever.queries(QUESTIONS))
    found = {name: ranker.rank(queries, 3) for name, ranker in every_source(parts, retriever).items()}
    for number, (z, hits) in enumerate(
        zip(all_z(parts, retriever, queries), retriever.hits(QUESTIONS, 3), strict=True)
    ):
        union = sorted({row for lists in found.values() for row in lists[number]})
        assert len(union) <= 9
        of_row = dict(zip(retriever.store.row_ids.tolist(), z.tolist(), strict=True))
        assert [hit.row_id for hit in hits] == sorted(union, key=lambda row: (-of_row[row], row))[:3]
        for hit in hits:
            assert hit.sources == tuple(name for name, lists in found.items() if hit.row_id in lists[number])


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_excluded_rows_are_never_found(parts: Parts, exact_rows: int) -> None:
    retriever = opened(parts, exact_rows=exact_rows)
    best = [{hit.row_id for hit in hits[:2]} for hits in retriever.hits(QUESTIONS, 4)]
    queries = Queries(QUESTIONS, best, retriever.queries(QUESTIONS))
    for rows, barred in zip(retriever.ranker.rank(queries, 200), best, strict=True):
        assert rows
        assert not {*rows} & barred


def test_a_batch_changes_nothing(parts: Parts) -> None:
    retriever = opened(parts)
    together = retriever.hits(QUESTIONS, 5)
    alone = [retriever.hits([question], 5)[0] for question in QUESTIONS]
    assert [[h.row_id for h in hits] for hits in together] == [[h.row_id for h in hits] for hits in alone]


def test_words_alone_need_no_query_vector(evaluation_artefacts: World, tmp_path: Path) -> None:
    world = evaluation_artefacts
    checkpoint = with_fusion(world.checkpoint, tmp_path / "words", Fusion(weights={"bm25": 2.0}))
    retriever = Retriever.open(checkpoint, world.memory)
    expected = Bm25.of_memory(retriever.store).search(QUESTIONS, 4)
    ranker = retriever.ranker
    assert isinstance(ranker, FusedRanker)
    hits = ranker.hits(Queries(QUESTIONS, [()] * 2), 4)
    assert [[h.row_id for h in of][:2] for of in hits] == expected[0][:, :2].tolist()
    assert [h.score for h in hits[0]][:2] == pytest.approx(2 * expected[1][0, :2], rel=1e-5)
    assert retriever.ask(QUESTIONS[:1], num_selected=2, max_new_tokens=2)[0].passages[0].sources == ("bm25",)


def test_what_a_weight_needs_and_is_missing_is_named(parts: Parts, evaluation_artefacts: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weight 2 for dense; give the folder .* --dense-model"):
        Retriever.open(parts.checkpoint, parts.memory, parts.index)
    other = str(embedding_model.write(tmp_path / "other", seed=5))
    with pytest.raises(InputError, match=r"weight 2 for dense by the model with hash .* has [0-9a-f]{12}…; give that"):
        Retriever.open(parts.checkpoint, parts.memory, parts.index, retrieval=Retrieval(dense_model=other))
    with pytest.raises(InputError, match=r"weight 2 for dense, and .* has no such part; .*--dense-model FOLDER"):
        Retriever.open(
            parts.checkpoint, parts.memory, evaluation_artefacts.index, retrieval=Retrieval(dense_model=parts.model)
        )
    bare = tmp_path / "bare"
    build_index(parts.memory, bare, "Flat", num_queries=0, words=False, dense=DenseEncoder(parts.model))
    with pytest.raises(InputError, match=r"weight 0\.8 for bm25, and .*bare has no such part; build the INDEX again"):
        Retriever.open(parts.checkpoint, parts.memory, bare, retrieval=Retrieval(dense_model=parts.model))
    with pytest.raises(InputError, match=r"candidates by dense vectors .* there is no INDEX"):
        Retriever.open(parts.checkpoint, parts.memory, retrieval=Retrieval(dense_model=parts.model))


def test_ask_explains(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", str(parts.checkpoint), "--memory", str(parts.memory), "--index", str(parts.index)]
    command += ["--dense-model", parts.model, "--num-selected", "2", "--max-new-tokens", "2", QUESTIONS[0]]
    first = opened(parts, exact_rows=5_000).hits(QUESTIONS[:1], 1)[0][0]
    assert ask.main([*command, "--explain"]) == 0
    text = capsys.readouterr().out
    parts_of_z = " + ".join(f"{name} {value:.2f}" for name, value in first.contributions.items())
    assert f"z {first.score:.2f} = {parts_of_z}; found by {', '.join(first.sources)}" in text
    assert ask.main([*command, "--json"]) == 0
    passage = json.loads(capsys.readouterr().out)["passages"][0]
    assert passage["contributions"] == pytest.approx(dict(first.contributions), rel=1e-5)
    assert passage["sources"] == list(first.sources)


def test_the_published_score_is_explained_too(evaluation_artefacts: World) -> None:
    world = evaluation_artefacts
    retriever = Retriever.open(world.checkpoint, world.memory, world.index)
    found, scores = retriever.search(retriever.queries(QUESTIONS), 3)
    for rows, values, hits in zip(found.tolist(), scores.tolist(), retriever.hits(QUESTIONS, 3), strict=True):
        assert [hit.row_id for hit in hits] == rows
        assert [hit.score for hit in hits] == values
        assert [hit.contributions for hit in hits] == [{"memory": value / 0.02} for value in values]


def test_rows_that_pass_a_filter_have_the_scores_of_the_whole_search(parts: Parts) -> None:
    retriever = opened(parts, exact_rows=5000)
    names = retriever.store.document_ids[::7]
    only = Filter(documents=tuple(names))
    for own, every in zip(retriever.hits(QUESTIONS, 4, only), retriever.hits(QUESTIONS, 1000), strict=True):
        passed = set(only.rows(retriever.store))
        expected = [hit for hit in every if hit.row_id in passed][:4]
        assert [hit.row_id for hit in own] == [hit.row_id for hit in expected]
        assert [hit.score for hit in own] == pytest.approx([hit.score for hit in expected], abs=1e-4)


def test_a_question_that_no_source_finds_anything_for(evaluation_artefacts: World, tmp_path: Path) -> None:
    world = evaluation_artefacts
    checkpoint = with_fusion(world.checkpoint, tmp_path / "words", Fusion(weights={"bm25": 2.0}))
    nothing = Retriever.open(checkpoint, world.memory, retrieval=Retrieval(exact_rows=0))
    assert nothing.hits(["zzzz qqqq"], 3) == [[]]
    assert nothing.ask(["zzzz qqqq"], num_selected=3, max_new_tokens=2)[0].passages == ()
    every = Retriever.open(checkpoint, world.memory)  # few rows: all are scored, and all scores are 0
    hits = every.hits(["zzzz qqqq"], 3)[0]
    assert [hit.row_id for hit in hits] == every.store.row_ids[:3].tolist()
    assert [(hit.score, hit.sources) for hit in hits] == [(0.0, ())] * 3


@pytest.mark.parametrize("exact_rows", [0, 10_000])
def test_a_query_that_is_not_finite_returns_no_rows_and_leaves_the_others(parts: Parts, exact_rows: int) -> None:
    retriever = opened(parts, exact_rows=exact_rows)
    vectors = retriever.queries(QUESTIONS)
    expected = retriever.ranker.rank(Queries(QUESTIONS, [()] * 2, vectors), 4)
    vectors[0, 1, 2] = np.nan
    found = retriever.ranker.rank(Queries(QUESTIONS, [()] * 2, vectors), 4)
    assert found == [[], expected[1]]


def test_an_older_checkpoint_has_the_published_score(evaluation_artefacts: World, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(evaluation_artefacts.checkpoint, older)
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["model"]["fusion"], manifest["model"]["score"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    settings = Checkpoint.open(older).settings
    assert settings.fusion.published
    assert settings.score == Score()
    before = Retriever.open(evaluation_artefacts.checkpoint, evaluation_artefacts.memory).hits(QUESTIONS, 3)
    assert Retriever.open(older, evaluation_artefacts.memory).hits(QUESTIONS, 3) == before
