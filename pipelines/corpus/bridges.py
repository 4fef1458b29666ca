"""Bridge cloze: questions from a corpus alone; the answer is in another document than the cut sentence.

In a sentence of one article (the source) the mention of another (the target) is masked. The answer is the target's
name, the target is the positive document, and the source is excluded from the candidates: a retriever has to find the
article that the gap refers to, which states the facts of the sentence in other words.

The split of a question follows from two ids alone, never from the corpus around them:

* target held out: `unseen`;
* else source held out: `seen`, where the target has a question in `train`, otherwise dropped;
* else `train`; dropped where the sentence mentions a held-out article.

So training never reads a sentence that an `unseen` or `seen` question was cut from, and a compressor pretrained without
the held-out articles of a corpus has not met those of any part of it.
"""

import dataclasses
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from clara.config.jobs import Cloze
from clara.data.questions import Question
from clara.data.records import Document
from clara.retrieval.bm25 import Bm25
from pipelines.corpus.mentions import MASK, Mention, Names, is_held_out, plain_title, sentences

CLOZE = "cloze"
_DEFAULTS = Cloze()


@dataclass(frozen=True)
class ClozeSettings:
    """What determines the questions of a corpus.

    Attributes:
        seed: chooses which questions of a target are kept, and draws the pools.
        max_per_target: most questions with one answer.
        min_words, max_words: length of a sentence with its gap, in words.
        held_out_share, salt: share of articles held out, and what their ids are hashed with.
        pool_size: documents in the fixed pool of a `seen` or `unseen` question; 0: none.
        train_pools: training questions have such a pool too, of articles that are not held out.
        max_mentions: most articles of a name that `shared_names` masks; 0: it masks none.
    """

    seed: int = 0
    max_per_target: int = _DEFAULTS.max_per_target
    min_words: int = _DEFAULTS.min_words
    max_words: int = _DEFAULTS.max_words
    held_out_share: float = _DEFAULTS.held_out_share
    salt: str = _DEFAULTS.salt
    pool_size: int = _DEFAULTS.pool_size
    train_pools: bool = _DEFAULTS.train_pools
    max_mentions: int = _DEFAULTS.max_mentions


@dataclass(frozen=True)
class Bridge:
    """A masked sentence; `secret` where it mentions a held-out article."""

    question_id: str
    question: str
    name: str
    source_id: str
    target_id: str
    secret: bool


def find_bridges(documents: Sequence[Document], settings: ClozeSettings) -> tuple[list[Bridge], dict[str, int]]:
    """Usable mentions of other articles in corpus order; the number of mentions, and of dropped ones by reason."""
    names = Names(documents)
    held_out = [d for d in documents if is_held_out(d.id, settings.held_out_share, settings.salt)]
    # A name shared by two articles identifies neither, but a sentence that may mean a held-out one is not trained on.
    secrets = Names(held_out, keep_shared=True)
    found: list[Bridge] = []
    counts: Counter[str] = Counter(mentions=0)
    seen: set[str] = set()
    for document in documents:
        for sentence in sentences(document.text):
            mentions = [m for m in names.find(sentence) if m.target_id != document.id]
            secret = bool(mentions) and any(True for _ in secrets.find(sentence))
            for mention in mentions:
                counts["mentions"] += 1
                bridge = _bridge(document, sentence, mention, secret)
                reason = _flaw(bridge, sentence, mention, settings) or (
                    "the same question again" if bridge.question_id in seen else ""
                )
                if reason:
                    counts[f"dropped: {reason}"] += 1
                    continue
                seen.add(bridge.question_id)
                found.append(bridge)
    return found, dict(counts)


def _bridge(source: Document, sentence: str, mention: Mention, secret: bool) -> Bridge:
    question = sentence[: mention.start] + MASK + sentence[mention.end :]
    digest = hashlib.sha256(f"{source.id}:{mention.target_id}:{question}".encode()).hexdigest()[:16]
    return Bridge(digest, question, mention.name, source.id, mention.target_id, secret)


def _flaw(bridge: Bridge, sentence: str, mention: Mention, settings: ClozeSettings) -> str:
    if not settings.min_words <= len(bridge.question.split()) <= settings.max_words:
        return "sentence too short or too long"
    rest = sentence[: mention.start] + " " + sentence[mention.end :]
    return "its name occurs in the sentence again" if mention.name.casefold() in rest.casefold() else ""


def limit_per_target(bridges: Sequence[Bridge], settings: ClozeSettings) -> list[Bridge]:
    """At most `max_per_target` of each target in each of its splits, chosen by hash, in the order given.

    The limit holds for a split by itself, so that a source's being held out does not change what is trained on.
    """
    groups: dict[tuple[str, str], list[Bridge]] = defaultdict(list)
    for bridge in bridges:
        groups[bridge.target_id, split_of(bridge, settings)].append(bridge)
    kept: set[str] = set()
    for group in groups.values():
        group.sort(key=lambda b: hashlib.sha256(f"{settings.seed}:{b.question_id}".encode()).digest())
        kept.update(b.question_id for b in group[: settings.max_per_target])
    return [b for b in bridges if b.question_id in kept]


def split_of(bridge: Bridge, settings: ClozeSettings) -> str:
    """Split by the ids alone; empty where the question must not be asked at all."""
    if is_held_out(bridge.target_id, settings.held_out_share, settings.salt):
        return "unseen"
    if is_held_out(bridge.source_id, settings.held_out_share, settings.salt):
        return "seen"
    return "" if bridge.secret else "train"


def cloze_questions(documents: Sequence[Document], settings: ClozeSettings) -> tuple[list[Question], dict[str, int]]:
    """Questions of a corpus, and the account of its mentions: mentions = questions + dropped, by reason."""
    bridges, counts = find_bridges(documents, settings)
    allowed = [b for b in bridges if split_of(b, settings)]
    counts["dropped: sentence mentions a held-out article"] = len(bridges) - len(allowed)
    limited = limit_per_target(allowed, settings)
    counts["dropped: beyond max_per_target"] = len(allowed) - len(limited)
    trained = {b.target_id for b in limited if split_of(b, settings) == "train"}
    kept = [b for b in limited if split_of(b, settings) != "seen" or b.target_id in trained]
    counts["dropped: only its sources held out"] = len(limited) - len(kept)
    titles = {d.id: d.title for d in documents}
    questions = [_question(b, titles[b.target_id], settings) for b in kept]
    return with_all_pools(questions, documents, settings), counts


def _question(bridge: Bridge, title: str, settings: ClozeSettings) -> Question:
    answers = tuple(dict.fromkeys((bridge.name, plain_title(title), title)))
    split = split_of(bridge, settings)
    return Question(
        bridge.question_id, bridge.question, answers, (bridge.target_id,), (), (bridge.source_id,), split, kind=CLOZE
    )


def with_all_pools(
    questions: Sequence[Question], documents: Sequence[Document], settings: ClozeSettings
) -> list[Question]:
    """Questions with the pools that the settings ask for; a pool of a training question has no held-out article."""
    found = list(questions)
    if settings.pool_size:
        found = with_pools(found, documents, settings, ("seen", "unseen"))
    if settings.pool_size and settings.train_pools:
        known = [d for d in documents if not is_held_out(d.id, settings.held_out_share, settings.salt)]
        found = with_pools(found, known, settings, ("train",))
    return found


def with_pools(
    questions: Sequence[Question], documents: Sequence[Document], settings: ClozeSettings, splits: Collection[str]
) -> list[Question]:
    """Questions of these splits with a fixed, shuffled pool: positives, up to half by BM25, the rest random."""
    ids = [d.id for d in documents]
    row_of = {name: number for number, name in enumerate(ids)}
    asked = [q for q in questions if q.split in splits]
    excluded = [{row_of[name] for name in (*q.positive_ids, *q.exclude_ids)} for q in asked]
    index = Bm25.of_documents(documents)
    hard, _ = index.search([q.question for q in asked], settings.pool_size // 2, excluded)
    pools = {}
    for question, best, excluded_rows in zip(asked, hard.tolist(), excluded, strict=True):
        rng = random.Random(f"{settings.seed}:{question.question_id}")
        pool = [row_of[name] for name in question.positive_ids] + [row for row in best if row >= 0]
        used = excluded_rows | set(pool)
        free = len(documents) - len(used)
        missing = min(settings.pool_size - len(pool), free)
        while missing > 0:
            row = rng.randrange(len(documents))
            if row not in used:
                used.add(row)
                pool.append(row)
                missing -= 1
        rng.shuffle(pool)
        pools[question.question_id] = tuple(ids[row] for row in pool)
    return [dataclasses.replace(q, candidate_ids=pools.get(q.question_id, q.candidate_ids)) for q in questions]
