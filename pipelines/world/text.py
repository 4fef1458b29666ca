"""The texts of the small world: names, things, places, wordings of facts, questions and decoys. Functions of a seed.

A fact is that somebody keeps a thing at a place. The document that states it names the person but neither the
question's word for the thing nor its verb; four decoys repeat the whole question and state nothing. So whatever ranks
by similarity finds a decoy; only the answer shows the difference.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NUM_DECOYS = 4


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "ada bert cleo dario edna felix greta hugo irma jonas kira lars mona nils olga pavel quinn rosa sven tilda ulf "
    "vera wim xenia"
)
LAST_NAMES = _words(
    "abel blum cole dorn ebert falk graf hahn imhof jung kern lang maurer nagel ott pohl quast rath stein thal "
    "ullman vogt wolff zorn"
)
# The words that questions use for things, and, in the same order, those that documents use.
ASKED_THINGS = _words(
    "lamp coat cup rug knife bag boat bike book clock hat ring phone chair box coin rope drum letter map bell key "
    "violin pot"
)
STATED_THINGS = _words(
    "lantern jacket mug carpet blade sack canoe bicycle volume timepiece cap band "
    "handset stool crate penny cord tambour note chart chime latchkey fiddle kettle"
)
PLACES = _words(
    "attic cellar garage kitchen garden stable harbour library chapel tower bakery school museum office station "
    "mill barn castle market theatre "
    "bridge cabin forest hotel island jail lighthouse mine orchard palace quarry ruin shed tavern vault well yard "
    "zoo arena bank"
)

FACT_WORDINGS = (
    "in the {place} rests the {thing} of {name}",
    "the {thing} belonging to {name} lies inside the {place}",
    "{name} left a {thing} at the {place}",
    "go to the {place} and there is the {thing} of {name}",
)
QUESTION_WORDINGS = (
    "where does {name} keep her {thing} ?",
    "which place hides what {name} calls her {thing} ?",
    "can you tell where {name} would store that {thing} ?",
)
# The same words, put otherwise: nothing here is a word that training never showed.
NEW_QUESTION_WORDINGS = (
    "tell which place {name} would keep that {thing} ?",
    "that {thing} : where does {name} store her ?",
)
DECOY_WORDINGS = (
    "somebody asked : {question}",
    "{question} nobody could say",
    "people often wonder : {question}",
    "{question} a riddle since long ago",
)


@dataclass(frozen=True)
class Fact:
    """Somebody (indices of first and last name) keeps a thing at a place (indices)."""

    first: int
    last: int
    thing: int
    place: int

    @property
    def name(self) -> str:
        """First and last name: two tokens."""
        return f"{FIRST_NAMES[self.first]} {LAST_NAMES[self.last]}"

    @property
    def answer(self) -> str:
        """The place: one token."""
        return PLACES[self.place]

    def stated(self, wording: int) -> str:
        """A document that states the fact, in the documents' words."""
        return FACT_WORDINGS[wording].format(name=self.name, thing=STATED_THINGS[self.thing], place=self.answer)

    def asked(self, wording: str) -> str:
        """The question after the place, in the questions' words."""
        return wording.format(name=self.name, thing=ASKED_THINGS[self.thing])


def decoys(question: str) -> list[str]:
    """Documents that hold every word of the question, and no answer."""
    return [wording.format(question=question) for wording in DECOY_WORDINGS]


def held_out_names(seed: int, share: float = 0.2) -> set[tuple[int, int]]:
    """Pairs of first and last name that training never has together; each of the two occurs in training with others."""
    pairs = [(first, last) for first in range(len(FIRST_NAMES)) for last in range(len(LAST_NAMES))]
    random.Random(f"{seed} held-out names").shuffle(pairs)
    return set(pairs[: int(share * len(pairs))])


def draw_facts(
    names: Sequence[tuple[int, int]],
    count: int,
    rng: random.Random,
    taken: set[tuple[int, int, int]],
    *,
    of_a_name: int,
) -> list[Fact]:
    """Random facts: each (name, thing) once, with a place that nothing else determines.

    Args:
        names: pairs to draw from.
        count: facts wanted.
        rng: the random numbers.
        taken: (first, last, thing) that are used up; is added to.
        of_a_name: facts about each name drawn; a name may be drawn again.
    """
    facts: list[Fact] = []
    while len(facts) < count:
        first, last = rng.choice(names)
        free = [thing for thing in range(len(ASKED_THINGS)) if (first, last, thing) not in taken]
        for thing in rng.sample(free, min(of_a_name, len(free))):
            taken.add((first, last, thing))
            facts.append(Fact(first, last, thing, rng.randrange(len(PLACES))))
    return facts[:count]


def others(facts: Sequence[Fact], right: int, count: int, rivals: int, rng: random.Random) -> list[int]:
    """The facts of a pool: none at the right place; `rivals` about the name, two sharing each part, and others.

    So neither half of the name nor the thing alone finds the right document; with rivals, the name does not either.
    """
    fact = facts[right]
    usable = [i for i, f in enumerate(facts) if i != right and f.place != fact.place]
    rng.shuffle(usable)

    def first_few(alike: Callable[[Fact], bool], few: int) -> list[int]:
        return list(itertools.islice((i for i in usable if alike(facts[i])), few))

    near = first_few(lambda f: f.name == fact.name, rivals)
    near += first_few(lambda f: f.first == fact.first and f.last != fact.last, 2)
    near += first_few(lambda f: f.first != fact.first and f.last == fact.last, 2)
    near += first_few(lambda f: f.thing == fact.thing and f.first != fact.first and f.last != fact.last, 2)
    return [*near, *(i for i in usable if i not in near and facts[i].name != fact.name)][:count]


def vocabulary() -> list[str]:
    """Every word of the world and of its prompts, sorted."""
    texts = [*FIRST_NAMES, *LAST_NAMES, *PLACES, *ASKED_THINGS, *STATED_THINGS]
    texts += [
        t.format(name="", thing="", place="", question="")
        for t in (*FACT_WORDINGS, *QUESTION_WORDINGS, *NEW_QUESTION_WORDINGS, *DECOY_WORDINGS)
    ]
    return sorted({word for text in texts for word in text.split()} | {"Question", "Answer", "Background", "Again"})
