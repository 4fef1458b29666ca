"""BM25: a brute-force twin, ties, exclusion."""

import math
import re

import numpy as np
import pytest
from bm25s.stopwords import STOPWORDS_EN

from clara.errors import InputError
from clara.retrieval.bm25 import Bm25, top
from clara.retrieval.ranker import Queries

TEXTS = [
    "Lagos is the largest city of Nigeria",
    "Cassava grows well; cassava is eaten in Nigeria and Ghana",
    "Accra is a city on the coast",
    "A violin has four strings",
]


def brute_force(question: str, texts: list[str]) -> list[float]:
    """Lucene's BM25 from its formula, over words of two characters or more that are no stop words."""
    stop = set(STOPWORDS_EN)
    words = [[w for w in re.findall(r"\b\w\w+\b", t.lower()) if w not in stop] for t in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for document in words:
        score = 0.0
        for word in re.findall(r"\b\w\w+\b", question.lower()):
            if word in stop:
                continue
            frequency = sum(word in d for d in words)
            idf = math.log(1 + (len(words) - frequency + 0.5) / (frequency + 0.5))
            count = document.count(word)
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("question", ["Which city is in Nigeria?", "cassava Ghana", "strings of a city violin"])
def test_scores_are_those_of_the_formula(question: str) -> None:
    rows, scores = Bm25.of_texts(TEXTS, [10, 11, 12, 13]).search([question], 4)
    expected = brute_force(question, TEXTS)
    order = [i for i in sorted(range(4), key=lambda i: -expected[i]) if expected[i] > 0]
    assert rows[0, : len(order)].tolist() == [10 + i for i in order]
    np.testing.assert_allclose(scores[0, : len(order)], [expected[i] for i in order], rtol=1e-5)
    assert (rows[0, len(order) :] == -1).all()
    assert np.isneginf(scores[0, len(order) :]).all()


def test_equal_scores_come_in_the_order_of_rows() -> None:
    rows, scores = Bm25.of_texts(["violin music", *["sailing boat"] * 5], [7, 3, 9, 1, 8, 2]).search(["boat"], 3)
    assert rows.tolist() == [[3, 9, 1]]
    assert len(set(scores[0].tolist())) == 1


def test_excluded_rows_make_room_for_the_next_and_only_for_their_question() -> None:
    index = Bm25.of_texts(TEXTS, [10, 11, 12, 13])
    rows, _ = index.search(["city Nigeria", "city Nigeria"], 2, exclude=[{10, 999}, set()])
    assert 10 not in rows[0].tolist()
    assert rows[1, 0] == 10
    assert rows[0, 0] in (11, 12)


@pytest.mark.parametrize("question", ["", "the of and", "zzzz qqqq"])
def test_a_question_without_known_words_finds_nothing(question: str) -> None:
    rows, scores = Bm25.of_texts(TEXTS, [0, 1, 2, 3]).search([question], 2)
    assert rows.tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()


def test_top_equals_a_stable_sort() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 5, 40).astype(np.float32)
        k = int(rng.integers(1, 50))
        whole = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] > 0]
        assert top(scores, k).tolist() == whole[:k]


def test_a_few_rows_have_the_scores_that_they_have_among_all_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    texts = [" ".join(f"w{word}" for word in rng.zipf(1.3, 30) if word < 500) or "empty" for _ in range(400)]
    ids = rng.permutation(10_000)[:400]
    bm25 = Bm25.of_texts(texts, ids)
    questions = [" ".join(f"w{word}" for word in rng.zipf(1.3, 8)) for _ in range(20)] + ["w1 w1 w7 w1", "zzzz", ""]
    barred = [set(rng.choice(ids, 30).tolist()) for _ in questions]
    queries = Queries(questions, barred)
    every = bm25.score(queries, [ids.tolist()] * len(questions))
    of = [dict(zip(ids.tolist(), scores, strict=True)) for scores in every]
    few = [rng.choice(ids, 20).tolist() for _ in questions]
    monkeypatch.setattr("clara.retrieval.bm25._FEW", 1)
    found = bm25.score(queries, few)
    assert found == [[scores[row] for row in rows] for scores, rows in zip(of, few, strict=True)]
    assert any(any(scores) for scores in found)
    with pytest.raises(ValueError, match="1 rows are not among those"):
        bm25.score(Queries(["w1"], [()]), [[10_001]])


def test_bad_ids_are_refused() -> None:
    with pytest.raises(InputError, match="one id for each text"):
        Bm25.of_texts(["a text"], [1, 2])
    with pytest.raises(InputError, match="occur twice"):
        Bm25.of_texts(["a text", "another"], [1, 1])


def test_search_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    Bm25.of_texts(TEXTS, [0, 1, 2, 3]).search(["city"] * 100, 2)
    assert capfd.readouterr() == ("", "")
