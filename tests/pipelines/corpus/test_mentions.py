"""Sentences, names, and where a sentence mentions an article."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara.data.records import Document, normalise
from pipelines.corpus.mentions import Names, is_held_out, sentences, specific_name


def document(title: str, text: str = "", name: str = "") -> Document:
    return Document(name or title, title, text or f"{title} is described here.")


def found(names: Names, sentence: str) -> list[str]:
    mentions = list(names.find(sentence))
    assert all(sentence[m.start : m.end] == m.name for m in mentions)
    return [m.target_id for m in mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One ends. Two begins! Is it three? Yes.", ["One ends.", "Two begins!", "Is it three?", "Yes."]),
        ("He met Dr. Smith and J. R. Tolkien. They spoke.", ["He met Dr. Smith and J. R. Tolkien.", "They spoke."]),
        ("The U.S. Army came. It left.", ["The U.S. Army came.", "It left."]),
        ('He said "Stop." Then he went (far.) Home.', ['He said "Stop."', "Then he went (far.)", "Home."]),
        ("It weighs 3.5 kg. 12 were sold.", ["It weighs 3.5 kg.", "12 were sold."]),
        ("No end", ["No end"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.text(alphabet="aAbB.!? \"'()3", max_size=60))
def test_sentences_lose_nothing(text: str) -> None:
    text = normalise(text)
    assert " ".join(sentences(text)) == text


@pytest.mark.parametrize(
    ("title", "text", "name"),
    [
        ("Vertigo (film)", "Vertigo is a film.", "Vertigo"),
        ("Tower", "A tower is a tall structure.", ""),
        ("Tower", "Some towers lean.", ""),
        ("Turkey", "Turkey is a country.", "Turkey"),
        ("Earth", "Earth knows earthquakes.", "Earth"),
        ("These", "These are words.", ""),
        ("Oslo", "Oslo is a city.", "Oslo"),
        ("Fes", "Fes is a city.", ""),
        ("eBay", "eBay is a company.", ""),
        ("Chemical element", "A chemical element is matter.", "Chemical element"),
    ],
)
def test_specific_names(title: str, text: str, name: str) -> None:
    assert specific_name(title, text) == name


def test_the_longest_name_wins() -> None:
    names = Names([document("New York"), document("New York City"), document("York")])
    assert found(names, "He moved to New York City and then to New York, not to York.") == [
        "New York City",
        "New York",
        "York",
    ]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("He lives in Spain.", ["Spain"]),
        ("Spain's kings ruled.", []),  # a single word at the start
        ("Here Spain's kings ruled.", ["Spain"]),
        ("A Spainish word and a pro-Spain party.", []),
        ("The Spain–Portugal border.", []),
        ("Madrid, Spain, and Lisbon.", ["Spain"]),
        ("It was in New Spain then.", []),
        ("The Spain Tower fell.", []),
        ("The Spain 82 cup.", []),
        ("The Spain of Goya.", []),
        ("They wrote in spain.", []),
        ("World War II began.", ["World War II"]),
        ("After World War II Spain starved.", []),
    ],
)
def test_boundaries(sentence: str, expected: list[str]) -> None:
    assert found(Names([document("Spain"), document("World War II")]), sentence) == expected


def test_shared_names_are_nobodys_unless_asked_for() -> None:
    two = [document("Mercury (planet)", "Mercury it is.", "b"), document("Mercury (god)", "Mercury it is.", "a")]
    sentence = "They saw Mercury."
    assert Names(two).num_shared == 1
    assert found(Names(two), sentence) == []
    assert found(Names(two, keep_shared=True), sentence) == ["a"]


def test_holding_out_is_monotone_and_near_its_share() -> None:
    ids = [f"document-{n}" for n in range(4000)]
    tenth = {i for i in ids if is_held_out(i, 0.1)}
    assert 300 < len(tenth) < 500
    assert tenth < {i for i in ids if is_held_out(i, 0.2)}
    assert not any(is_held_out(i, 0.0) for i in ids)
    assert tenth != {i for i in ids if is_held_out(i, 0.1, salt="another")}
