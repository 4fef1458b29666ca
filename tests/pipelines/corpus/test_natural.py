"""Natural questions: splits, answers, several articles, the account."""

import random
from dataclasses import replace

from clara.data.questions import Question
from clara.data.records import Document
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.facts import Fact
from pipelines.corpus.mentions import is_held_out
from pipelines.corpus.natural import answers_of, natural_questions

SETTINGS = ClozeSettings(held_out_share=0.25, max_per_target=9, min_words=3)


def corpus(number: int = 40) -> list[Document]:
    """Towns whose sentences state three facts each, and mention the next town."""
    return [
        Document(
            f"t{i}",
            f"Town{i}",
            f"Town{i} is the capital of Land{i}. It was founded in {1500 + i} by the duke. "
            f"It was designed by Master{i}. The long road from there goes to Town{(i + 1) % number} and is paved.",
        )
        for i in range(number)
    ]


def by_id(questions: list[Question]) -> dict[str, Question]:
    return {q.question_id: q for q in questions}


def test_every_fact_is_accounted_for_and_names_its_article() -> None:
    questions, counts = natural_questions(corpus(), replace(SETTINGS, max_per_target=2))
    assert counts["dropped: beyond max_per_target"] > 0
    assert counts.pop("facts") == 120 == len(questions) + sum(counts.values())
    for question in questions:
        (target,) = question.positive_ids
        assert question.kind == "natural"
        assert question.question.split()[-1].strip("?").endswith(target[1:]) or f"Town{target[1:]}" in question.question


def test_no_target_of_training_is_asked_for_by_an_unseen_question_of_either_kind() -> None:
    natural, cloze = natural_questions(corpus(), SETTINGS)[0], cloze_questions(corpus(), SETTINGS)[0]
    both = [*natural, *cloze]
    trained = {t for q in both if q.split == "train" for t in q.positive_ids}
    unseen = {t for q in both if q.split == "unseen" for t in q.positive_ids}
    assert trained
    assert unseen
    assert not trained & unseen
    assert all(is_held_out(t, 0.25) for t in unseen)
    assert {q.split for q in natural} == {"train", "unseen"}


def test_training_never_reads_the_name_of_a_held_out_article() -> None:
    documents = corpus()
    secret = {d.title for d in documents if is_held_out(d.id, 0.25)}
    mentioning = [
        Document(f"x{i}", f"Bridge{i}", f"Bridge{i} is a bridge. It is located in {title}.")
        for i, title in enumerate(sorted(secret))
    ]
    questions, _ = natural_questions([*documents, *mentioning], SETTINGS)
    assert any(title in q.answers for q in questions if not q.split for title in secret)
    assert not any(title in q.question + str(q.answers) for q in questions if q.split == "train" for title in secret)


def test_articles_that_answer_differently_drop_a_question_and_those_that_agree_are_all_positive() -> None:
    settings = replace(SETTINGS, held_out_share=0)
    one = Document("1", "Alba", "Alba is the capital of Scotia.")
    other = Document("2", "Belba", "Belba is the capital of Scotia.")
    assert natural_questions([one, other], settings)[0] == []
    maker = Document("3", "Ann Old", "Ann Old was an engineer who invented Zeppo.")
    made = Document("4", "Zeppo", "Zeppo was invented by Ann Old.")
    ((question,), counts) = natural_questions([maker, made], settings)
    assert (question.question, question.answers) == ("Who invented Zeppo?", ("Ann Old",))
    assert question.positive_ids == ("3", "4")
    assert counts["merged: the same question again"] == 1
    twin = Document("5", "Alba (town)", "Alba is a town in Scotia.")
    assert natural_questions([one, twin], settings)[0] == []


def test_the_order_of_the_corpus_does_not_matter() -> None:
    shuffled = corpus()
    random.Random(0).shuffle(shuffled)
    settings = replace(SETTINGS, max_per_target=1)
    assert by_id(natural_questions(shuffled, settings)[0]) == by_id(natural_questions(corpus(), settings)[0])


def test_accepted_answers() -> None:
    def answers(answer: str, title: str = "T") -> tuple[str, ...]:
        return answers_of(Fact("", "", answer, ""), title)

    assert answers("Geneva, Switzerland") == ("Geneva, Switzerland", "Geneva")
    assert answers("the northern Indian Ocean") == ("the northern Indian Ocean", "Indian Ocean")
    assert answers("14 February 2005") == ("14 February 2005", "2005")
    assert answers("February 14, 2005") == ("February 14, 2005", "2005")
    assert answers("", "Paris (city)") == ("Paris", "Paris (city)")


def test_pools_are_made_as_for_cloze() -> None:
    questions, _ = natural_questions(corpus(), replace(SETTINGS, pool_size=6))
    for question in questions:
        assert len(question.candidate_ids) == (6 if question.split == "unseen" else 0)
        assert question.split == "train" or set(question.positive_ids) < set(question.candidate_ids)
