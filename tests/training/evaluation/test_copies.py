"""Judgements and positives that name a dropped duplicate count, in evaluation and in training."""

from pathlib import Path

import pytest

from clara.data.questions import Question
from clara.memory.store import MemoryStore
from clara.retrieval.pools import QuestionRows
from clara.retrieval.ranker import Queries
from tests.helpers.memories import chunk, random_memory, write_memory
from training.evaluation.measures import retrieval_measures
from training.evaluation.retrievers import Corpus, ranked, select


def row(number: int) -> int:
    return chunk(number).row_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    """Documents 0 to 5; `copy` is equal to 0, `near` like `copy`, `part` equal to 1 and 2; 3 shares a chunk with 4."""
    copies = [
        ("copy", row(0), None),
        ("near", None, "copy"),
        ("near", None, "near"),
        ("part", row(1), None),
        ("part", row(2), None),
        ("document-3", row(4), None),
        ("lost", 12345, None),
    ]
    folder = tmp_path_factory.mktemp("copies") / "memory"
    return MemoryStore.open(write_memory(folder, random_memory(6), copies=copies))


def measured(store: MemoryStore, question: Question, *rows: int) -> dict[str, float]:
    corpus = Corpus(store)
    counted, names = corpus.judged(question)
    found = corpus.ranked_documents([row(number) for number in rows], names)
    (measures,) = retrieval_measures("index", [found], [counted.positive_ids], [counted.positive_grades])
    return measures


def test_rows_of_copies(store: MemoryStore) -> None:
    assert store.rows_of("copy") == store.rows_of("near") == store.rows_of("document-0") == [row(0)]
    assert store.rows_of("part") == sorted([row(1), row(2)])
    assert store.rows_of("document-3") == sorted([row(3), row(4)])
    assert store.rows_of("document-4") == [row(4)]
    assert store.rows_of("lost") == store.rows_of("nowhere") == []
    assert sorted(store.document_ids) == [f"document-{n}" for n in range(6)]


@pytest.mark.parametrize("name", ["copy", "near", "document-0"])
def test_what_is_kept_is_right_for_a_question_that_names_the_copy(store: MemoryStore, name: str) -> None:
    question = Question("q", "Who?", ("Ada",), (name,))
    assert measured(store, question, 0, 5)["index.recall@1"] == 1
    assert measured(store, question, 5, 0)["index.mrr"] == 0.5
    assert Corpus(store).judged(question)[0] == question


def test_copies_of_one_text_count_as_one_positive_with_the_best_grade(store: MemoryStore) -> None:
    question = Question(
        "q", "Who?", ("Ada",), ("copy", "document-0", "document-5"), positive_hops=(2, 1, 0), positive_grades=(1, 3, 2)
    )
    counted, _ = Corpus(store).judged(question)
    assert (counted.positive_ids, counted.positive_grades, counted.positive_hops) == (
        ("copy", "document-5"),
        (3, 2),
        (1, 0),
    )
    found = measured(store, question, 0, 5)
    assert (found["index.recall@3"], found["index.precision@3"], found["index.ndcg@10"]) == (1, 2 / 3, 1)


def test_a_document_in_several_rows_is_found_by_any_of_them(store: MemoryStore) -> None:
    question = Question("q", "Who?", ("Ada",), ("part",))
    for rows in ((2, 5), (1, 2), (2, 1)):
        assert measured(store, question, *rows)["index.recall@1"] == 1
    both = Question("q", "Who?", ("Ada",), ("document-3", "document-4"))
    assert measured(store, both, 3, 4)["index.recall@1"] == 1  # all rows of 4 are rows of 3


def test_pools_and_prompts_have_the_row_once_and_no_copy_as_the_wrong_one(store: MemoryStore) -> None:
    corpus = Corpus(store)
    question = Question("q", "Who?", ("Ada",), ("copy",))
    for size in range(1, 7):
        pool = corpus.rows(corpus.pool(question, size))
        assert len({*pool}) == len(pool) >= size
        chosen = select(question, ranked((), dict.fromkeys(pool, 1.0)), corpus, 3)
        assert chosen.right == (row(0),)
        assert (chosen.wrong is None) == (size == 1)
        assert chosen.wrong != (row(0),)
    published = Question("q", "Who?", ("Ada",), ("copy",), ("document-0", "copy", "near", "document-5"))
    assert sorted(corpus.rows(corpus.pool(published, 9))) == sorted([row(0), row(5)])


def test_training_takes_the_row_that_is_kept_and_leaves_out_that_of_an_excluded_copy(store: MemoryStore) -> None:
    question = Question("q", "Who?", ("Ada",), ("near", "copy", "part"), ("copy", "document-0", "document-5"))
    known = QuestionRows.of(question, store)
    assert known.positive == (row(0), *sorted([row(1), row(2)]))
    assert known.pool == (row(0), row(5))
    excluded = Question("q", "Who?", ("Ada",), ("part",), exclude_ids=("copy",))
    assert QuestionRows.of(excluded, store).excluded == {row(0)}
    assert [*Queries.of([excluded], store).excluded] == [{row(0)}]


def test_a_corpus_without_copies_is_measured_as_before(tmp_path: Path) -> None:
    store = MemoryStore.open(write_memory(tmp_path / "plain", random_memory(6)))
    question = Question("q", "Who?", ("Ada",), ("document-1", "gone"), positive_hops=(1, 2))
    counted, names = Corpus(store).judged(question)
    assert counted is question
    assert names == {row(1): "document-1"}
    assert measured(store, question, 1)["index.recall@1"] == 0.5
