"""Cloze questions about names that no article bears: a name of two to a few articles is masked in one of them.

A name is a run of capitalised words, or a single one of five letters or more that does not begin its sentence, is no
part of a longer name, and is nowhere in the corpus written small.

The answer is the name; positives are the other articles that hold it. Not each of them need help to answer: utilities
say which do. So nearly every article can be a target, where only mentioned ones are targets of bridge cloze.

Splits are those of bridge cloze: all positives held out: `unseen`; none, but the source: `seen`, where training asks
for the same articles; else `train`, unless the sentence mentions a held-out article. A question some of whose positives
are held out is dropped.
"""

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from clara.data.questions import Question
from clara.data.records import Document
from pipelines.corpus.bridges import ClozeSettings, with_all_pools
from pipelines.corpus.maskable import names_in
from pipelines.corpus.mentions import (
    FUNCTION_WORDS,
    MASK,
    Names,
    ends_word,
    is_held_out,
    is_part,
    plain_title,
    sentences,
)

SHARED_NAME = "shared name"
_MIN_LETTERS = 5
_POSSESSIVE = re.compile("['’]s$")
_WORD = re.compile(r"\w+")
_SMALL = re.compile(r"\b[^\W\d_A-ZÀ-Þ]\w+")


def shared_name_questions(
    documents: Sequence[Document], settings: ClozeSettings
) -> tuple[list[Question], dict[str, int]]:
    """Questions of a corpus, and the account: names in articles = questions + dropped, by reason."""
    titles = {plain_title(d.title) for d in documents} | {d.title for d in documents}
    found: dict[str, dict[str, str]] = defaultdict(dict)  # name → article → its first sentence with the name
    small = {word for document in documents for word in _SMALL.findall(document.text)}
    for document in documents:
        for name, sentence in _names(document):
            if name not in titles and name.lower() not in small:
                found[name].setdefault(document.id, sentence)
    held_out = {d.id for d in documents if is_held_out(d.id, settings.held_out_share, settings.salt)}
    secrets = Names((d for d in documents if d.id in held_out), keep_shared=True)
    counts: Counter[str] = Counter({"names in articles": sum(map(len, found.values()))})
    questions = []
    for name, by_article in sorted(found.items()):
        if not 2 <= len(by_article) <= settings.max_mentions:
            counts["dropped: name of one article, or of too many"] += len(by_article)
            continue
        for source, sentence in by_article.items():
            question = _question(name, sentence, source, [d for d in by_article if d != source])
            words = len(question.question.split())
            split = _split(question, held_out, secret=any(True for _ in secrets.find(sentence)))
            if not settings.min_words <= words <= settings.max_words:
                counts["dropped: sentence too short or too long"] += 1
            elif sentence.casefold().count(name.casefold()) > 1:
                counts["dropped: its name occurs in the sentence again"] += 1
            elif not split:
                counts["dropped: held-out and other articles together"] += 1
            else:
                questions.append((question, split))
    kept = _limited(questions, settings)
    counts["dropped: beyond max_per_target, or seen without training"] = len(questions) - len(kept)
    return with_all_pools(kept, documents, settings), dict(counts)


def _names(document: Document) -> Iterator[tuple[str, str]]:
    """Names of an article's sentences, each with its sentence."""
    for sentence in sentences(document.text):
        spans = names_in(sentence)
        first = _WORD.search(sentence)
        for match in _WORD.finditer(sentence, first.end() if first else 0):
            word = match.group()
            if len(word) >= _MIN_LETTERS and word[0].isupper() and word not in FUNCTION_WORDS:
                start, end = match.span()
                whole = ends_word(sentence, start, end) and not is_part(sentence, start, end, single=True, first=False)
                if whole and not any(begin <= start < stop for begin, stop in spans):
                    yield word, sentence
        for start, end in spans:
            yield _POSSESSIVE.sub("", sentence[start:end]), sentence


def _question(name: str, sentence: str, source: str, targets: list[str]) -> Question:
    question = sentence.replace(name, MASK, 1)
    digest = hashlib.sha256(f"{source}:{name}:{question}".encode()).hexdigest()[:16]
    return Question(digest, question, (name,), tuple(sorted(targets)), (), (source,), kind=SHARED_NAME)


def _split(question: Question, held_out: set[str], *, secret: bool) -> str:
    """Split by the ids alone; empty where the question must not be asked at all."""
    sides = {target in held_out for target in question.positive_ids}
    if sides == {True}:
        return "unseen"
    if True in sides:
        return ""
    if question.exclude_ids[0] in held_out:
        return "seen"
    return "" if secret else "train"


def _limited(questions: Sequence[tuple[Question, str]], settings: ClozeSettings) -> list[Question]:
    """At most `max_per_target` for each set of targets in each split, by hash; `seen` only where training asks too."""
    groups: dict[tuple[tuple[str, ...], str], list[Question]] = defaultdict(list)
    for question, split in questions:
        groups[question.positive_ids, split].append(dataclasses.replace(question, split=split))
    kept = []
    for (targets, split), group in groups.items():
        if split != "seen" or (targets, "train") in groups:
            group.sort(key=lambda q: hashlib.sha256(f"{settings.seed}:{q.question_id}".encode()).digest())
            kept += group[: settings.max_per_target]
    return sorted(kept, key=lambda q: q.question_id)
