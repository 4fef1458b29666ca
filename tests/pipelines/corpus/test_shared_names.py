"""Cloze about names that no article bears: positives, splits, the account."""

from dataclasses import replace

from clara.data.records import Document
from pipelines.corpus.bridges import ClozeSettings
from pipelines.corpus.mentions import MASK, is_held_out
from pipelines.corpus.shared_names import shared_name_questions

SETTINGS = ClozeSettings(held_out_share=0, max_per_target=9, min_words=3, max_mentions=3)


def article(name: str, *names: str) -> Document:
    return Document(name, f"Town{name}", " ".join(f"This town was once built by {n} for its people." for n in names))


def test_a_name_of_two_articles_is_masked_in_each_and_asks_for_the_other() -> None:
    corpus = [article("a", "Master Oldo"), article("b", "Master Oldo", "Lady Nim"), article("c", "Lady Zed")]
    questions, counts = shared_name_questions(corpus, SETTINGS)
    assert {(q.exclude_ids, q.positive_ids, q.answers) for q in questions} == {
        (("a",), ("b",), ("Master Oldo",)),
        (("b",), ("a",), ("Master Oldo",)),
    }
    assert all(q.question == f"This town was once built by {MASK} for its people." for q in questions)
    assert all((q.kind, q.split) == ("shared name", "train") for q in questions)
    assert counts.pop("names in articles") == 4 == len(questions) + sum(counts.values())


def test_titles_and_names_of_too_many_articles_are_left_out() -> None:
    many = [article(str(i), "Master Oldo") for i in range(4)]
    assert shared_name_questions(many, SETTINGS)[0] == []
    assert len(shared_name_questions(many, replace(SETTINGS, max_mentions=4))[0]) == 4
    titled = [article("a", "Master Oldo"), article("b", "Master Oldo"), Document("o", "Master Oldo (duke)", "A duke.")]
    assert shared_name_questions(titled, SETTINGS)[0] == []


def test_targets_of_training_are_not_held_out_and_mixed_ones_are_dropped() -> None:
    share = 0.4
    corpus = [article(str(i), f"Master Oldo{i // 3}", f"Lady Nim{i % 7}") for i in range(60)]
    settings = replace(SETTINGS, held_out_share=share, max_mentions=12)
    questions, counts = shared_name_questions(corpus, settings)
    for question in questions:
        sides = {is_held_out(target, share) for target in question.positive_ids}
        assert sides == {question.split == "unseen"}
        assert question.split != "train" or not is_held_out(question.exclude_ids[0], share)
    assert {q.split for q in questions} >= {"train", "unseen"}
    assert counts["dropped: held-out and other articles together"] > 0
    assert counts.pop("names in articles") == len(questions) + sum(counts.values())


def test_a_single_word_is_a_name_if_it_is_written_large_everywhere_and_not_first() -> None:
    def asked(*texts: str) -> set[str]:
        corpus = [Document(str(i), f"Town{i}", text) for i, text in enumerate(texts)]
        return {q.answers[0] for q in shared_name_questions(corpus, SETTINGS)[0]}

    assert asked("They row the Godavari each year.", "We swim in the Godavari at night.") == {"Godavari"}
    assert asked("They love the Autumn of the year.", "We like the Autumn rain.", "It is autumn there.") == set()
    assert asked("Godavari is what they row.", "We swim in the Godavari at night.") == set()
    assert asked("They row the Godavari River here.", "We swim in the Godavari at night.") == set()
    assert asked("They read the Merriam-Webster book.", "We met Webster at night.") == set()
    assert asked("This is Lady Nim's town.", "We met Lady Nim here.") == {"Lady Nim"}
