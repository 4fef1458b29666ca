"""Facts that an article states of its subject in a fixed form, and the question that each of them answers.

A sentence is read where its subject is the article: the first one, where its subject is the title (of a person: begins
and ends with the title's first and last word), and later ones that begin with the title, its last word or a pronoun.
`fact_rules.RULES` has the forms of predicates.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clara.data.records import Document
from pipelines.corpus.fact_rules import RULES
from pipelines.corpus.mentions import plain_title, sentences, specific_name

_VERB = re.compile(r" (?=(?:is|was|are|were|died|took place) )")
_PRONOUN = re.compile(r"^(?:It|He|She|They) (?:also )?(?=[a-z])")
_PARTICIPLE = re.compile(r"^(?:Founded|Established|Formed|Born) ")
_ASIDE = re.compile(r" ?\([^()]*\)")
_PERSONAL = re.compile(r"\b(?:he|she|his|her|who)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """A question that a sentence of an article answers.

    Attributes:
        rule: that found it.
        question: in words.
        answer: as the sentence has it; empty: the article itself.
        sentence: that states it.
    """

    rule: str
    question: str
    answer: str
    sentence: str


def facts(document: Document) -> Iterator[Fact]:
    """Facts of an article in the order of its sentences; a sentence may state several."""
    name = plain_title(document.title)
    subject = _subject(name, document.text)
    proper = bool(specific_name(document.title, document.text))
    person = " " in name and bool(_PERSONAL.search(document.text))
    for number, sentence in enumerate(sentences(document.text)):
        predicate = _predicate(name, sentence, first=number == 0)
        for rule in RULES if predicate else ():
            # A common noun in the place of the subject is no question: "Where is castle located?".
            if (rule.first and number > 0) or (rule.person and not person) or ("{s}" in rule.question and not proper):
                continue
            if match := rule.pattern.search(predicate):
                groups = match.groupdict()
                yield Fact(rule.name, rule.question.format(s=subject, **groups), groups.get("a") or "", sentence)


def _subject(name: str, text: str) -> str:
    """How a question names an article: by its title, with "the" in front where its own text has it."""
    if text.startswith(name):
        return name
    return f"the {name}" if re.search(rf"\b(?:T|t)he {re.escape(name)}(?=[.,;]| [(a-z])", text) else name


def _predicate(name: str, sentence: str, *, first: bool) -> str:
    """What a sentence says of an article, from the verb on; empty where its subject is something else."""
    sentence = _ASIDE.sub("", sentence)
    if _PARTICIPLE.match(sentence):
        return sentence
    if not first and (pronoun := _PRONOUN.match(sentence)):
        return sentence[pronoun.end() :]
    verb = _VERB.search(sentence)
    if verb is None:
        return ""
    head = re.sub("^(?:The|A|An) ", "", sentence[: verb.start()].split(",")[0]).strip('"“”')
    words, own = head.split(), name.split()
    person = len(own) > 1 and len(words) > 1 and (words[0], words[-1]) == (own[0], own[-1])
    return sentence[verb.end() :] if head == name or (first and person) or (not first and head == own[-1]) else ""
