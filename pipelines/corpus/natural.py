"""Natural questions from a corpus alone: Who, What, Which, Where and When, by rule (`facts.py`).

"Don Quixote is a Spanish novel by Miguel de Cervantes" gives "Who wrote Don Quixote?". The article that states the fact
is the positive document. A question that articles answer differently is dropped; one that several answer alike has
all of them as positives.

Splits are those of cloze questions: all positives held out: `unseen`; none: `train`, or no split where the sentence
mentions a held-out article, as neither training nor the evaluation asks it then. So no target of training is one of
`unseen`, whichever kind asks for it.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from clara.data.questions import Question
from clara.data.records import Document
from clara.metrics import normalise_answer
from pipelines.corpus.bridges import ClozeSettings, with_all_pools
from pipelines.corpus.facts import Fact, facts
from pipelines.corpus.mentions import Names, is_held_out, plain_title

NATURAL = "natural"
_SMALL_WORDS = re.compile(r"^(?:[a-z-]+ )+(?=[^a-z])")
_YEAR = re.compile(r"(?:^| )(\d{4})$")


@dataclass(frozen=True)
class _Asked:
    """A fact with its article's id, and the answers that count as right."""

    fact: Fact
    document_id: str
    answers: tuple[str, ...]


def answers_of(fact: Fact, title: str) -> tuple[str, ...]:
    """Accepted wordings: as stated; without small words in front; a place without what it is in; the year of a date."""
    if not fact.answer:
        return tuple(dict.fromkeys((plain_title(title), title)))
    bare = _SMALL_WORDS.sub("", fact.answer)
    year = _YEAR.search(fact.answer)
    return tuple(dict.fromkeys((fact.answer, bare, bare.split(", ")[0] if not year else year[1])))


def natural_questions(documents: Sequence[Document], settings: ClozeSettings) -> tuple[list[Question], dict[str, int]]:
    """Questions of a corpus, and the account of its facts: facts = questions + merged + dropped, by reason."""
    counts: Counter[str] = Counter(facts=0)
    groups: dict[str, list[_Asked]] = defaultdict(list)
    bearers = Counter(plain_title(d.title) for d in documents)
    for document in documents:
        for fact in facts(document):
            counts["facts"] += 1
            answers = answers_of(fact, document.title)
            if bearers[plain_title(document.title)] > 1:
                counts["dropped: another article has that title"] += 1
            elif any(answer.casefold() in fact.question.casefold() for answer in answers):
                counts["dropped: the question holds the answer"] += 1
            else:
                groups[fact.question.casefold()].append(_Asked(fact, document.id, answers))
    held_out = [d for d in documents if is_held_out(d.id, settings.held_out_share, settings.salt)]
    secrets = Names(held_out, keep_shared=True)
    questions = []
    for asked in groups.values():
        reason, split = _judged(asked, secrets, settings)
        if reason:
            counts[f"dropped: {reason}"] += len(asked)
            continue
        counts["merged: the same question again"] += len(asked) - 1
        questions.append(_question(asked, split))
    kept = _limited(questions, settings)
    counts["dropped: beyond max_per_target"] = len(questions) - len(kept)
    return with_all_pools(kept, documents, settings), dict(counts)


def _judged(asked: Sequence[_Asked], secrets: Names, settings: ClozeSettings) -> tuple[str, str]:
    """Why there is no question (empty: there is one), and its split."""
    common = set.intersection(*({normalise_answer(answer) for answer in one.answers} for one in asked))
    if not common:
        return "articles answer it differently", ""
    sides = {is_held_out(one.document_id, settings.held_out_share, settings.salt) for one in asked}
    if len(sides) > 1:
        return "only some of its articles held out", ""
    if sides == {True}:
        return "", "unseen"
    secret = any(True for one in asked for _ in secrets.find(one.fact.sentence))
    return "", "" if secret else "train"


def _question(asked: Sequence[_Asked], split: str) -> Question:
    question = asked[0].fact.question
    answers = dict.fromkeys(answer for one in asked for answer in one.answers)
    targets = dict.fromkeys(one.document_id for one in asked)
    digest = hashlib.sha256(f"{NATURAL}:{question}".encode()).hexdigest()[:16]
    return Question(digest, question, tuple(answers), tuple(targets), split=split, kind=NATURAL)


def _limited(questions: Sequence[Question], settings: ClozeSettings) -> list[Question]:
    """At most `max_per_target` for each article, the first positive of a question, chosen by hash, in their order."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.positive_ids[0]].append(question)
    kept: set[str] = set()
    for group in groups.values():
        group.sort(key=lambda q: hashlib.sha256(f"{settings.seed}:{q.question_id}".encode()).digest())
        kept.update(q.question_id for q in group[: settings.max_per_target])
    return [q for q in questions if q.question_id in kept]
