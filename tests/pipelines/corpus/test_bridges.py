"""Bridge cloze: what a question is, its split, its pool, and what is dropped."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from clara.data.questions import Question
from clara.data.records import Document
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.mentions import MASK, is_held_out
from tests.helpers import towns

SETTINGS = ClozeSettings(held_out_share=0.25, max_per_target=100, min_words=3)
CORPUS = towns.documents()


def by_id(questions: list[Question]) -> dict[str, Question]:
    return {q.question_id: q for q in questions}


def test_a_question_is_a_sentence_whose_gap_names_the_positive_and_whose_source_is_excluded() -> None:
    questions, counts = cloze_questions(CORPUS, replace(SETTINGS, held_out_share=0))
    documents = {d.id: d for d in CORPUS}
    assert len(questions) == 65 == counts["mentions"]
    for question in questions:
        (source,), (target,) = question.exclude_ids, question.positive_ids
        assert source != target
        assert question.answers == (documents[target].title,)
        assert question.question.count(MASK) == 1
        assert question.question.replace(MASK, question.answers[0]) in documents[source].text
        assert documents[target].title not in question.question


def test_splits_follow_from_the_two_ids() -> None:
    questions, _ = cloze_questions(CORPUS, SETTINGS)
    splits = Counter(q.split for q in questions)
    assert splits.keys() == {"train", "seen", "unseen"}
    trained = {q.positive_ids for q in questions if q.split == "train"}
    for question in questions:
        source, target = (is_held_out(ids[0], 0.25) for ids in (question.exclude_ids, question.positive_ids))
        assert question.split == ("unseen" if target else "seen" if source else "train")
        assert question.split != "seen" or question.positive_ids in trained


def test_training_never_reads_a_sentence_that_evaluation_asks_about() -> None:
    questions, _ = cloze_questions(CORPUS, SETTINGS)
    sentences = {
        split: {q.question.replace(MASK, q.answers[0]) for q in questions if q.split == split}
        for split in ("train", "seen", "unseen")
    }
    assert not sentences["train"] & (sentences["seen"] | sentences["unseen"])
    secret = [d.title for d in CORPUS if is_held_out(d.id, 0.25)]
    assert not any(title in sentence for title in secret for sentence in sentences["train"])


def test_a_part_of_the_corpus_gives_a_part_of_the_questions_with_the_same_splits() -> None:
    # `seen` needs a training question of its target, which a part may not have: the other two splits are compared.
    whole = by_id(cloze_questions(CORPUS, SETTINGS)[0])
    part = by_id(cloze_questions(CORPUS[::2] + CORPUS[30:], SETTINGS)[0])
    assert len(part) > 10
    for name, question in part.items():
        assert question.split == "train" or whole[name] == question
    held_out = {q.positive_ids for q in whole.values() if q.split == "unseen"}
    assert not held_out & {q.positive_ids for q in part.values() if q.split == "train"}


def test_the_order_of_the_corpus_does_not_matter() -> None:
    settings = replace(SETTINGS, max_per_target=2)
    shuffled = CORPUS.copy()
    random.Random(0).shuffle(shuffled)
    assert by_id(cloze_questions(shuffled, settings)[0]) == by_id(cloze_questions(CORPUS, settings)[0])


def test_every_mention_is_accounted_for() -> None:
    questions, counts = cloze_questions(CORPUS, replace(SETTINGS, max_per_target=2))
    assert counts["dropped: beyond max_per_target"] > 0
    assert counts.pop("mentions") == len(questions) + sum(counts.values())
    per_target = Counter((q.positive_ids, q.split) for q in questions)
    assert max(per_target.values()) == 2


def test_the_limits_choice_follows_the_seed() -> None:
    one, other = (by_id(cloze_questions(CORPUS, replace(SETTINGS, max_per_target=1, seed=s))[0]).keys() for s in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("They sail on the Tamo to the mouth of the Tamo.", "dropped: its name occurs in the sentence again"),
        ("The big TAMO mill worked on the Tamo.", "dropped: its name occurs in the sentence again"),
        ("See the Tamo.", "dropped: sentence too short or too long"),
        ("They row the Tamo each year. They row the Tamo each year.", "dropped: the same question again"),
    ],
)
def test_useless_mentions_are_dropped_with_their_reason(text: str, reason: str) -> None:
    corpus = [Document("t", "Tamo", "Tamo is a river."), Document("s", "", text)]
    questions, counts = cloze_questions(corpus, replace(SETTINGS, held_out_share=0, min_words=4))
    assert counts[reason] >= 1
    assert counts["mentions"] == len(questions) + sum(n for name, n in counts.items() if name != "mentions")


def test_the_disambiguated_title_is_an_alias() -> None:
    corpus = [
        Document("v", "Vertigo (film)", "Vertigo is a film."),
        Document("s", "", "Many people have seen Vertigo more than once."),
    ]
    ((question,), _) = cloze_questions(corpus, replace(SETTINGS, held_out_share=0))
    assert question.answers == ("Vertigo", "Vertigo (film)")


def test_pools_hold_the_positive_and_others_but_never_the_source() -> None:
    settings = replace(SETTINGS, pool_size=8)
    questions, _ = cloze_questions(CORPUS, settings)
    places = []
    for question in questions:
        if question.split == "train":
            assert question.candidate_ids == ()
            continue
        assert len(set(question.candidate_ids)) == 8 == len(question.candidate_ids)
        assert set(question.positive_ids) < set(question.candidate_ids)
        assert not set(question.exclude_ids) & set(question.candidate_ids)
        places.append(question.candidate_ids.index(question.positive_ids[0]))
    assert len(set(places)) > 1
    assert cloze_questions(CORPUS, settings)[0] == questions


def test_training_questions_get_pools_without_held_out_articles_where_asked() -> None:
    settings = replace(SETTINGS, pool_size=8, train_pools=True)
    questions, _ = cloze_questions(CORPUS, settings)
    plain, _ = cloze_questions(CORPUS, replace(settings, train_pools=False))
    assert [q for q in questions if q.split != "train"] == [q for q in plain if q.split != "train"]
    for question in questions:
        if question.split == "train":
            assert len(set(question.candidate_ids)) == 8 == len(question.candidate_ids)
            assert set(question.positive_ids) < set(question.candidate_ids)
            assert not set(question.exclude_ids) & set(question.candidate_ids)
            assert not any(is_held_out(name, settings.held_out_share, settings.salt) for name in question.candidate_ids)


def test_a_pool_larger_than_the_corpus_is_the_corpus_without_the_source() -> None:
    questions, _ = cloze_questions(CORPUS, replace(SETTINGS, pool_size=99))
    sizes = {len(q.candidate_ids) for q in questions if q.split == "unseen"}
    assert sizes == {len(CORPUS) - 1}
