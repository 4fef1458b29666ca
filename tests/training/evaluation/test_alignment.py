"""Utility alignment: hand-worked probes, utilities against the model, correlation against its definition."""

import numpy as np
import pytest

from clara.data.questions import Question, read_questions
from clara.data.records import input_text
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever
from tests.helpers.evaluation_world import World
from training.evaluation.alignment import (
    CANDIDATES,
    Probe,
    aligned_rows,
    moved_documents,
    probes,
    rank_correlation,
    solo_probes,
)
from training.evaluation.measures import hop_measures
from training.evaluation.pictures import likelihood_bars, recall_curves, utility_points
from training.evaluation.readers import MemoryReader, Reading, ReadingCache, TextReader
from training.evaluation.retrievers import rank_and_score

ASKED = Question("q", "Who?", ("Ada", "A."), ("d",))


@pytest.fixture(scope="module")
def retriever(world: World) -> Retriever:
    return Retriever.open(world.trained, world.memory)


def reading(*rows: int) -> Reading:
    return Reading("Who?", "Ada", rows)


def test_probes_leave_one_out_and_put_the_others_in_the_place_of_the_last() -> None:
    assert probes(ASKED, (7, 3, 9, 1), 2) == {
        7: Probe(reading(7, 3), reading(3)),
        3: Probe(reading(7, 3), reading(7)),
        9: Probe(reading(7, 9), reading(7)),
        1: Probe(reading(7, 1), reading(7)),
    }
    # Fewer candidates than places: all are selected.
    assert probes(ASKED, (7, 3), 5) == {7: Probe(reading(7, 3), reading(3)), 3: Probe(reading(7, 3), reading(7))}
    # With one place, utility is solo utility.
    assert probes(ASKED, (7, 3), 1) == solo_probes(ASKED, (7, 3)) == {n: Probe(reading(n), reading()) for n in (7, 3)}


def test_correlation_is_that_of_the_ranks() -> None:
    assert rank_correlation([3.0, 2.0, 1.0], [10.0, -1.0, -100.0]) == pytest.approx(1)
    assert rank_correlation([3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(-1)
    # Without ties: 1 - 6 Σ d² / (n (n² - 1)).
    a, b = np.random.default_rng(0).permutation(9), np.random.default_rng(1).permutation(9)
    assert rank_correlation(a, b) == pytest.approx(1 - 6 * float(np.sum((a - b) ** 2)) / (9 * 80))
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_utilities_are_the_models_own_and_the_plain_lm_reads_text(world: World, retriever: Retriever) -> None:
    store, questions = retriever.store, read_questions(world.questions)[:2]
    pools = [store.row_ids.tolist()[:4], store.row_ids.tolist()[2:7]]
    queries = Queries.of(questions, store, retriever.queries([q.question for q in questions]))
    rankings, lexical = (
        rank_and_score(ranker, queries, pools, store) for ranker in (retriever.ranker, Bm25.of_memory(store))
    )
    text = TextReader(retriever)
    rows = aligned_rows(
        "x", questions, rankings, lexical, {"generator": MemoryReader(retriever), "text": text}, 2, store
    )

    def likelihood(question: Question, chosen: list[int]) -> float:
        nats, _ = retriever.model.answer_log_likelihood(
            [question.question], [retriever.memories(chosen)], [question.answers[0]]
        )
        return float(nats[0])

    for question, ranking, common in zip(questions, rankings, lexical, strict=True):
        row, (first, second, third) = rows[question.question_id], ranking.pool[:3]
        candidates = row[CANDIDATES]
        assert [c["row_id"] for c in candidates] == list(ranking.pool)
        assert [c["score"] for c in candidates] == sorted((c["score"] for c in candidates), reverse=True)
        expected = [
            likelihood(question, [first, second]) - likelihood(question, [second]),
            likelihood(question, [first, second]) - likelihood(question, [first]),
            likelihood(question, [first, third]) - likelihood(question, [first]),
        ]
        assert [c["generator"] for c in candidates[:3]] == pytest.approx(expected, abs=1e-3)
        assert candidates[2]["generator_solo"] == pytest.approx(
            likelihood(question, [third]) - likelihood(question, []), abs=1e-3
        )
        chunk = store.records([third])[0]
        assert input_text(chunk.title, chunk.text) in retriever.model.tokenizer.decode(
            text.prompt(Reading("?", "x", (third,)), None).right
        )
        both = text.likelihoods([Reading(question.question, question.answers[0], rows) for rows in ((third,), ())])
        alone, nothing = both.values()
        assert candidates[2]["text_solo"] == pytest.approx(alone.nats - nothing.nats)
        words = dict(zip(common.pool, common.pool_scores, strict=True))
        assert [c["lexical"] for c in candidates] == [words[row] for row in ranking.pool]
        for who in ("generator", "text", "generator_solo", "text_solo"):
            utility = [c[who] for c in candidates]
            assert row[f"alignment.{who}"] == rank_correlation([c["score"] for c in candidates], utility)
            assert row[f"alignment.{who}_lexical"] == rank_correlation([c["lexical"] for c in candidates], utility)


def test_two_systems_over_one_lm_share_what_the_plain_lm_said(world: World, retriever: Retriever) -> None:
    other = Retriever.open(world.checkpoint, world.memory)
    assert TextReader.identity(other) == TextReader.identity(retriever)
    asked = [Reading("Who?", "Ada", tuple(retriever.store.row_ids.tolist()[:2]))]
    known = TextReader(retriever).likelihoods(asked)
    advanced: list[int] = []
    assert TextReader(other, ReadingCache(dict(known))).likelihoods(asked, advanced.append) == known
    assert not advanced
    assert TextReader(other).likelihoods(asked)[asked[0]].nats == pytest.approx(known[asked[0]].nats, abs=1e-4)


def candidates(*order: str, lexical: str) -> list[dict[str, object]]:
    return [
        {
            "row_id": ord(name),
            "title": name,
            "score": -place,
            "lexical": float(10 - lexical.index(name)),
            "positive": name == "h",
        }
        | dict.fromkeys(("generator", "generator_solo", "text", "text_solo"), 0.5)
        for place, name in enumerate(order)
    ]


def test_documents_that_moved() -> None:
    """Eight candidates, by words a to h: a and b look alike, e to h do not."""
    before = [{"question_id": "q", "question": "Who?", CANDIDATES: candidates(*"abcdefgh", lexical="abcdefgh")}]
    after = [
        {"question_id": "q", "question": "Who?", CANDIDATES: candidates(*"hbdcefga", lexical="abcdefgh")},
        {"question_id": "new"},
    ]
    down, up = moved_documents(before, after)
    assert [(m.title, m.lexical_place, m.before, m.after) for m in down] == [
        ("a", 0, 0, 7)
    ]  # c moved too, but is in the second quarter
    assert [(m.title, m.before, m.after, m.positive) for m in up] == [
        ("h", 7, 0, True)
    ]  # d rose as well, but is in the first half
    assert moved_documents(before, before) == ([], [])
    # A pool that is turned over names two of its documents, those that went furthest.
    turned = [{**before[0], CANDIDATES: candidates(*"hgfedcba", lexical="abcdefgh")}]
    assert [[m.title for m in of] for of in moved_documents(before, turned)] == [["a", "b"], ["h", "g"]]


def test_hop_ranks_worked_by_hand() -> None:
    question = Question("q", "Who?", ("Ada",), ("a", "b", "c", "x"), positive_hops=(1, 2, 3, 0))
    assert hop_measures("pool", ["b", "z", "a", "c"], question) == {
        "pool.first_hop_rank": 3.0,
        "pool.bridging_rank": 2.5,
    }
    assert hop_measures("pool", ["b", "z", "a"], question) == {}  # c is not in the pool
    assert hop_measures("index", ["b", "z", "a"], question, 101) == {
        "index.first_hop_rank": 3.0,
        "index.bridging_rank": 51.0,
    }
    comparison = Question("q", "Which?", ("Ada",), ("a", "b"), positive_hops=(1, 1))
    assert hop_measures("index", ["a", "b"], comparison, 101) == hop_measures("index", ["a"], ASKED, 101) == {}


@pytest.mark.filterwarnings("error")
def test_pictures_are_drawn_of_what_was_measured_only() -> None:
    assert recall_curves({"a": [{}]}, "x") is None
    assert likelihood_bars({"a": {}}, "x") is None
    assert utility_points({"a": [{}]}, "x") is None
    only_pools = recall_curves(
        {"a/b": [{"pool_recall_curve": [0.5] * 20}], "text/a": [{"pool_recall_curve": [0.5] * 20}]}, "x"
    )
    rows = [{CANDIDATES: candidates(*"abh", lexical="abh"), "alignment.generator": 0.5, "alignment.text": None}]
    points = utility_points({"before": rows, "after": rows}, "x")
    assert only_pools is not None
    assert points is not None
    assert only_pools[:4] == points[:4] == b"\x89PNG"
