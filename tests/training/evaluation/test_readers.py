"""Readers, rankers and measures of an evaluation: against the model and worked by hand."""

import dataclasses
from collections import Counter

import pytest

from clara.data.questions import Question
from clara.data.records import input_text
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries, Ranker
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import hash_of
from training.evaluation import retrievers
from training.evaluation.measures import differences, figures, hop_measures, likelihood_measures, retrieval_measures
from training.evaluation.pairs import evaluate_system
from training.evaluation.readers import Likelihood, MemoryReader, Reading, TextReader
from training.evaluation.retrievers import Corpus, Rankings, rank_and_score, select
from training.evaluation.systems import Settings


def test_likelihoods_are_the_models_own_whatever_the_batch(retriever: Retriever, questions: list[Question]) -> None:
    rows = retriever.store.row_ids.tolist()
    readings = [Reading(q.question, q.answers[0], tuple(rows[i : i + i % 4])) for i, q in enumerate(questions)]
    found = MemoryReader(retriever).likelihoods(readings)
    for reading in readings:
        nats, tokens = retriever.model.answer_log_likelihood(
            [reading.question], [retriever.memories(reading.rows)], [reading.answer]
        )
        assert found[reading].nats == pytest.approx(float(nats[0]), abs=1e-4)
        assert found[reading].num_tokens == int(tokens[0])
        assert found[reading].per_token == pytest.approx(float(nats[0]) / int(tokens[0]), abs=1e-4)


def test_answers_are_the_models_own_whatever_the_batch(retriever: Retriever, questions: list[Question]) -> None:
    rows = retriever.store.row_ids.tolist()
    readings = [Reading(q.question, q.answers[0], tuple(rows[i : i + i % 3])) for i, q in enumerate(questions[:5])]
    found = MemoryReader(retriever).answers(readings, 5)
    for reading in readings:
        (alone,) = retriever.model.generate([reading.question], [retriever.memories(reading.rows)], max_new_tokens=5)
        assert found[reading] == alone


def test_an_equal_reading_is_computed_once(retriever: Retriever, questions: list[Question]) -> None:
    reader = MemoryReader(retriever)
    reading = Reading(questions[0].question, "salt", ())
    advanced: list[int] = []
    expected = reader.likelihood_tokens([reading, reading])
    reader.likelihoods([reading, reading], advanced.append)
    assert sum(advanced) == expected > 0
    assert reader.likelihood_tokens([reading]) == 0
    reader.likelihoods([reading], advanced.append)
    assert sum(advanced) == expected


def test_text_reader_puts_raw_passages_in_the_prompt_of_the_plain_lm(retriever: Retriever) -> None:
    reader = TextReader(retriever)
    rows = retriever.store.row_ids.tolist()[:2]
    reading = Reading("Where is {documents}?", "salt", tuple(rows))
    prompt = reader.prompt(reading, "salt")
    text = retriever.model.tokenizer.decode(prompt.right)
    for chunk in retriever.store.records(rows):
        assert input_text(chunk.title, chunk.text) in text
    assert "Where is {documents}?" in text  # not taken for the template's own placeholder
    losses = retriever.model.answer_losses([prompt], [reader.memory(reading)], role=None)
    assert reader.likelihoods([reading])[reading].nats == pytest.approx(-float(losses.nll.sum()), abs=1e-4)


@pytest.mark.parametrize("kind", ["memory", "bm25"])
def test_rankers_rank_the_pool_as_they_rank_everything(
    retriever: Retriever, questions: list[Question], kind: str
) -> None:
    corpus = Corpus(retriever.store)
    ranker: Ranker = retriever.ranker if kind == "memory" else Bm25.of_memory(retriever.store)
    queries = Queries.of(questions, retriever.store, retriever.queries([q.question for q in questions]))
    pools = [corpus.rows(corpus.pool(q, 10)) for q in questions]
    rankings = rank_and_score(ranker, queries, pools, retriever.store)
    for question, pool, ranking in zip(questions, pools, rankings, strict=True):
        assert sorted(ranking.pool) == sorted(pool)
        excluded = set(corpus.rows(question.exclude_ids))
        assert not excluded & set(ranking.index)
        both = [row for row in ranking.index if row in set(pool)]
        assert [row for row in ranking.pool if row in set(both) - excluded] == both
        assert len(ranking.index) > 20


def test_a_document_counts_by_its_best_chunk(retriever: Retriever) -> None:
    corpus = Corpus(retriever.store)
    first, second = retriever.store.rows_of("doc-01"), retriever.store.rows_of("doc-02")
    assert len(first) == len(second) == 2
    assert corpus.ranked_documents([second[1], first[0], second[0], first[1]]) == ["doc-02", "doc-01"]


def test_made_pools_are_fixed_hold_the_positives_and_not_the_excluded(
    retriever: Retriever, questions: list[Question]
) -> None:
    corpus = Corpus(retriever.store)
    for question in questions:
        pool = corpus.pool(question, 12)
        assert pool == Corpus(retriever.store).pool(question, 12)
        if question.candidate_ids:
            assert set(pool) == set(question.candidate_ids)
        else:
            assert len(pool) == len(set(pool)) == 12
            assert set(question.positive_ids) <= set(pool)
            assert not set(question.exclude_ids) & set(pool)
    # A published pool with its right one in front is shuffled too, and the same whatever order it came in.
    ordered = [
        dataclasses.replace(q, question_id=f"o{i}", candidate_ids=tuple(f"doc-{n:02d}" for n in range(10)))
        for i, q in enumerate(questions)
    ]
    places = [corpus.pool(q, 10).index("doc-00") for q in ordered]
    assert len(set(places)) > 4
    assert [
        corpus.pool(dataclasses.replace(q, candidate_ids=q.candidate_ids[::-1]), 10).index("doc-00") for q in ordered
    ] == places
    seen = [q for q in questions if not q.candidate_ids]
    assert len({corpus.pool(q, 12).index(q.positive_ids[0]) for q in seen}) > 1  # the right one has no fixed position


def others_of(corpus: Corpus, question: Question) -> list[str]:
    """Documents that a pool may be filled up with."""
    closed = {corpus.document(row) for row in corpus.rows((*question.positive_ids, *question.exclude_ids))}
    return [d for d in corpus.documents if d not in closed]


def test_a_made_pool_has_the_documents_whose_hashes_are_lowest(retriever: Retriever, questions: list[Question]) -> None:
    corpus, question = Corpus(retriever.store), next(q for q in questions if not q.candidate_ids)
    others = others_of(corpus, question)
    lowest = sorted(others, key=lambda d: hash_of([question.question_id, d]))
    for size in (1, 2, 12, len(others) + 1, len(others) + 9):
        assert set(corpus.pool(question, size)) == {*question.positive_ids, *lowest[: size - 1]}


def test_of_a_large_corpus_places_are_drawn(
    retriever: Retriever, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrievers, "_HASHED_DOCUMENTS", 5)
    corpus, made = Corpus(retriever.store), [q for q in questions if not q.candidate_ids]
    for question in made:
        others, pool = others_of(corpus, question), corpus.pool(question, 12)
        assert pool == Corpus(retriever.store).pool(question, 12)
        assert len(pool) == len(set(pool)) == 12
        assert set(pool) <= {*question.positive_ids, *others}
        assert set(corpus.pool(question, 7)) < set(pool)  # a larger one only adds
        assert set(corpus.pool(question, 999)) == {*question.positive_ids, *others}
    drawn = Counter(d for number in range(300) for d in corpus._others(f"q{number}", {corpus.documents[0]}, 4))
    assert drawn.keys() == set(corpus.documents[1:])
    expected = 4 * 300 / len(drawn)
    assert all(0.4 * expected < count < 1.8 * expected for count in drawn.values())


def test_selection(retriever: Retriever, questions: list[Question]) -> None:
    corpus = Corpus(retriever.store)
    question = dataclasses.replace(questions[0], positive_ids=("doc-05",), exclude_ids=("doc-07",))
    rows = corpus.rows(["doc-05", "doc-06", "doc-07", "doc-08"])
    rankings = Rankings(index=tuple(rows[::-1]), pool=tuple(rows[::-1]))
    chosen = select(question, rankings, corpus, 2)
    assert chosen.index == chosen.pool == tuple(rows[::-1][:2])
    assert chosen.right == (corpus.rows(["doc-05"])[1],)  # the better ranked of its two chunks
    assert chosen.wrong is not None
    assert corpus.document(chosen.wrong[0]) in ("doc-06", "doc-08")
    assert chosen.none == ()
    turned = select(question, Rankings(index=(), pool=tuple(rows)), corpus, 2)
    assert turned.wrong is not None
    assert corpus.document(turned.wrong[0]) == corpus.document(
        chosen.wrong[0]
    )  # drawn by the question, not by the ranking
    assert select(question, Rankings(index=(), pool=()), corpus, 2).wrong is None
    unknown = dataclasses.replace(question, positive_ids=("not in memory",))
    assert select(unknown, rankings, corpus, 2).right is None


def test_retrieval_measures_worked_by_hand() -> None:
    first, second, third, fourth = retrieval_measures(
        "index", [["a", "b", "c"], ["x", "y", "p", "q"], [], ["a"]], [["b"], ["p", "z"], ["a"], []]
    )
    assert (first["index.recall@1"], first["index.recall@3"], first["index.mrr"]) == (0.0, 1.0, 0.5)
    assert first["index.precision@3"] == pytest.approx(1 / 3)
    assert (second["index.recall@1"], second["index.recall@3"], second["index.mrr"]) == (0.0, 0.5, pytest.approx(1 / 3))
    assert second["index_recall_curve"] == [0.0, 0.0] + [0.5] * 18
    assert (third["index.recall@20"], third["index.mrr"], third["index_recall_curve"]) == (
        0.0,
        0.0,
        [0.0] * 20,
    )  # nothing found is a miss
    assert fourth == {}  # no known positive: nothing is measured


def test_a_question_that_finds_nothing_counts(retriever: Retriever) -> None:
    (chunk,) = retriever.store.records(retriever.store.row_ids[:1])
    asked = ["xyzzy plugh", input_text(chunk.title, chunk.text), "frobozz"]  # only the second has a word of the corpus
    questions = [
        Question(f"q{i}", text, ("salt",), (chunk.document_id,), split="unseen") for i, text in enumerate(asked)
    ]
    rows = evaluate_system(
        "own", retriever, questions, Settings(2, baselines=("bm25",), retrieval_only=True), with_text=True
    )
    lexical, own = ([row for row in rows if row["system"] == name] for name in ("bm25/own", "own"))
    for measure in ("index.recall@1", "index.mrr"):
        found = figures(lexical)[measure]
        assert (found.value, found.num_questions) == (pytest.approx(1 / 3), 3)
        assert differences(own, lexical)[measure].num_questions == 3


def test_a_paragraph_that_no_ranking_holds_has_the_rank_behind_them() -> None:
    question = Question("q", "Where?", ("salt",), ("a", "b"), positive_hops=(1, 2))
    assert hop_measures("index", [], question, 101) == {"index.first_hop_rank": 101.0, "index.bridging_rank": 101.0}
    assert hop_measures("pool", [], question) == {}


def test_likelihood_measures_worked_by_hand() -> None:
    likelihoods = {
        "right": Likelihood(-2.0, 4),
        "wrong": Likelihood(-5.0, 4),
        "none": Likelihood(-4.0, 4),
        "index": Likelihood(-3.0, 4),
    }
    measures = likelihood_measures(likelihoods)
    assert measures["right.log_likelihood_per_token"] == -0.5
    gaps = {name: value for name, value in measures.items() if name.startswith("gap.")}
    assert gaps == {"gap.right_minus_wrong": 3.0, "gap.right_minus_none": 2.0, "gap.index_minus_none": 1.0}


def test_questions_of_one_target_are_resampled_together() -> None:
    base = [{"question_id": f"q{i}", "positive_ids": ["a" if i < 4 else "b"], "m.x": 0.0} for i in range(8)]
    better = [row | {"m.x": float(i < 4)} for i, row in enumerate(base)]
    # Two targets: every resample has a mean of 0, 0.5 or 1, and of four sign patterns two are as far from 0.
    assert (figures(better)["m.x"].low, figures(better)["m.x"].high) == (0.0, 1.0)
    test = differences(better, base)["m.x"]
    assert (test.low, test.high, test.p_value) == (0.0, 1.0, 1.0)
    alone = [row | {"positive_ids": [row["question_id"]]} for row in better]
    assert figures(alone) == figures([{**row, "positive_ids": []} for row in better])
    assert figures(alone)["m.x"].low > 0


def test_figures_and_differences_worked_by_hand() -> None:
    base = [{"question_id": f"q{i}", "m.x": float(i), "m.y": 1.0} for i in range(8)]
    better = [{"question_id": f"q{i}", "m.x": float(i) + 2.0, "m.y": None if i < 3 else 1.0} for i in range(8)][::-1]
    found = figures(better)
    assert (found["m.x"].value, found["m.x"].num_questions) == (5.5, 8)
    assert found["m.x"].low < 5.5 < found["m.x"].high
    assert found["m.y"].num_questions == 5
    compared = differences(better, base)
    assert compared["m.x"].difference == 2.0  # paired by question, though the order differs
    assert compared["m.x"].p_value == pytest.approx(2 / 2**8)
    assert (compared["m.y"].difference, compared["m.y"].num_questions) == (0.0, 5)
    assert compared["m.y"].p_value == 1.0
