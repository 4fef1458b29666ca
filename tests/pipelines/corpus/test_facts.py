"""Facts by rule: what a sentence gives, and what it must not give."""

import pytest

from clara.data.records import Document
from pipelines.corpus.facts import facts


def asked(title: str, text: str) -> list[tuple[str, str]]:
    """Questions and answers of an article; an answer that is the article is its title."""
    return [(f.question, f.answer or title) for f in facts(Document("d", title, text))]


@pytest.mark.parametrize(
    ("title", "text", "question", "answer"),
    [
        (
            "Don Quixote",
            "Don Quixote is a novel by Miguel de Cervantes, written in Early Modern Spanish.",
            "Who wrote Don Quixote?",
            "Miguel de Cervantes",
        ),
        ("Oedipus", "Oedipus is a tragedy by the Greek poet Sophocles.", "Who wrote Oedipus?", "Sophocles"),
        (
            "Lolita",
            "Lolita is a 1955 novel by the Russian and American novelist Vladimir Nabokov.",
            "Who wrote Lolita?",
            "Vladimir Nabokov",
        ),
        (
            "Jaws (film)",
            "Jaws is a 1975 American thriller film directed by Steven Spielberg.",
            "Who directed Jaws?",
            "Steven Spielberg",
        ),
        (
            "Jaws (film)",
            "Jaws is a 1975 American thriller film directed by Steven Spielberg.",
            "When did the film Jaws come out?",
            "1975",
        ),
        ("Osmium", "Osmium is a metal. It was discovered in 1803 by Tennant.", "When was Osmium discovered?", "1803"),
        (
            "British Museum",
            "The British Museum is in London. Established in 1753, it was the first national museum.",
            "When was the British Museum founded?",
            "1753",
        ),
        (
            "Galileo Galilei",
            "Galileo di Vincenzo Galilei was an astronomer. He was born in Pisa, and he died in Arcetri.",
            "Where was Galileo Galilei born?",
            "Pisa",
        ),
        (
            "Madrid",
            "Madrid is the capital and most populous city of Spain.",
            "What is the capital of Spain?",
            "Madrid",
        ),
        (
            "Lagos",
            "Lagos (/l/) is a large city in southwestern Nigeria.",
            "Where is Lagos located?",
            "southwestern Nigeria",
        ),
        (
            "Brazil",
            "Brazil is the largest country in South America.",
            "What is the largest country in South America?",
            "Brazil",
        ),
        (
            "Abraham Lincoln",
            "Abraham Lincoln was the 16th president of the United States, serving from 1861.",
            "Who was the 16th president of the United States?",
            "Abraham Lincoln",
        ),
        ("Cardiology", "Cardiology is the study of the heart.", "What is the study of the heart called?", "Cardiology"),
        (
            "Iron",
            "Iron is a chemical element; it has symbol Fe and atomic number 26.",
            "What is the atomic number of Iron?",
            "26",
        ),
        (
            "Reggae",
            "Reggae is a music genre that originated in Jamaica in the late 1960s.",
            "Which music genre originated in Jamaica in the late 1960s?",
            "Reggae",
        ),
        (
            "Barbie",
            "Barbie is a fashion doll created by American businesswoman Ruth Handler.",
            "Who created Barbie?",
            "Ruth Handler",
        ),
    ],
)
def test_a_form_gives_its_question_and_answer(title: str, text: str, question: str, answer: str) -> None:
    assert (question, answer) in asked(title, text)


@pytest.mark.parametrize(
    ("title", "text"),
    [
        (
            "Castle",
            "A castle is a building. The castle is a large building in Western Europe. A castle is old.",
        ),  # common noun
        ("Toledo", "In Spain, Madrid is the capital of Spain."),  # another subject
        ("Dune", "Dune is a novel by Frank Herbert, Brian Herbert and Kevin Anderson."),  # cut list
        ("Scroll", "Scroll is a painting by the Song dynasty artist Zhang."),  # a longer name
        ("Toy Tale", "Toy Tale is a comedy film produced by John Lasseter."),  # another role
        ("Curling", "Curling is a sport in which players slide stones on a sheet of ice."),  # no subject of the clause
        ("War of Two", "War of Two took place between 1945 and 1949."),  # no single date
        ("Neoclassicism", "Neoclassicism is a movement. It was born in Rome."),  # no person
        ("Belém", "Belém is the capital and largest city of the state of Pará in the north of Brazil."),
        ("Cape Town", "Cape Town is the legislative capital of South Africa."),  # one of several
        ("Lagrangian", "Lagrangian is a form introduced by the Italian-French and other people."),
        ("Empty", ""),
    ],
)
def test_other_forms_give_nothing(title: str, text: str) -> None:
    assert asked(title, text) == []
