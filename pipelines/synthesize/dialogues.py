"""Dialogues about one chunk, whoever answers: a stream yields requests that are independent, and is sent their replies.

Each stream ends in one example or in the reason why there is none, with a letter for everything that was dropped on the
way (the synthesis of section 2.1 of arXiv:2511.18659: questions, separate answers, verification, rounds until the
document is covered).

Differs: a question is tried once, over all rounds; where a round names nothing new, no further one is asked for.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clara.config.synthesis import Synthesis
from clara.data.examples import Example
from clara.data.records import Chunk, normalise
from pipelines.synthesize import replies
from pipelines.synthesize.prompts import Request, Templates
from pipelines.synthesize.replies import MAX_CHARACTERS, Reply, UnusableError

# What is counted of streams, and what of the questions in them; in both, the first is the sum of the others.
STREAMS, MADE, DROPPED, FAILED = "examples asked for", "examples made", "examples dropped", "examples failed"
QUESTIONS, KEPT, QUESTIONS_DROPPED, OF_OTHERS = (
    "questions",
    "questions kept",
    "questions dropped",
    "questions of examples not made",
)
UNCOVERED, ROUNDS, REQUESTS, PROMPT_TOKENS, REPLY_TOKENS = (
    "examples that do not cover their document",
    "supplementary rounds",
    "requests",
    "prompt tokens",
    "reply tokens",
)
EXAMPLE, QUESTION = "example: ", "question: "
"""How reasons begin, by what was dropped."""

T = TypeVar("T")
Stream = Generator[list[Request], list[Reply], "Outcome"]


@dataclass(frozen=True)
class Note:
    """Something that was not used: reason (counted), and what it was."""

    reason: str
    detail: str
    dropped: bool = True


@dataclass
class Outcome:
    """How a stream ended: with an example, or notes that say why not. `counts` are by the constants above."""

    kind: str
    example: Example | None = None
    notes: list[Note] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> bool:
        """Whether a request failed, so that asking again could help."""
        return any(not note.dropped for note in self.notes)


class _EndError(Exception):
    """The stream ends without an example."""

    def __init__(self, reason: str, detail: str, dropped: bool = True) -> None:
        self.note = Note(EXAMPLE + reason, detail, dropped)


def example_id(kind: str, chunk_id: str) -> str:
    """The id of a chunk's example of one kind."""
    return hashlib.sha256(f"synthesize:{kind}:{chunk_id}".encode()).hexdigest()[:16]


def stream(chunk: Chunk, kind: str, templates: Templates, settings: Synthesis) -> Stream:
    """One kind of example of one chunk. Yields independent requests, and expects their replies in the same order."""
    outcome = Outcome(kind)
    asked = _Asked(chunk, templates, settings, outcome)
    try:
        if kind == "paraphrase":
            texts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ((yield from _paraphrase(asked)),))
        else:
            pairs = yield from _pairs(asked, kind)
            texts = tuple(q for q, _ in pairs), tuple(a for _, a in pairs)
        name = "paraphrase" if kind == "paraphrase" else "qa"
        outcome.example = Example(
            example_id(kind, chunk.chunk_id), chunk.document_id, chunk.title, chunk.text, name, *texts
        )
    except _EndError as end:
        outcome.notes.append(end.note)
    outcome.counts[STREAMS] = 1
    outcome.counts[MADE if outcome.example else FAILED if outcome.failed else DROPPED] = 1
    return outcome


class _Asked:
    """A chunk as the values of templates, and the ways to ask about it; counts what it costs."""

    def __init__(self, chunk: Chunk, templates: Templates, settings: Synthesis, outcome: Outcome) -> None:
        self.chunk, self.settings, self.outcome = chunk, settings, outcome
        self._templates = templates
        # White space was normalised: title and text are one line each, so that neither can look like the next part of
        # the prompt.
        self._values = {"title": normalise(chunk.title) or "(none)", "text": normalise(chunk.text)}

    def request(self, name: str, **values: str) -> Request:
        return self._templates.request(name, **self._values, **values)

    def all(
        self, requests: Sequence[Request], form: Callable[[Any], T | None]
    ) -> Generator[list[Request], list[Reply], list[T | UnusableError]]:
        """Replies to requests, each repeated if its reply is unusable; a reply that stays unusable comes as the error.

        Raises:
            _EndError: a request failed.
        """
        results: list[T | UnusableError] = [UnusableError("not asked")] * len(requests)
        waiting = dict(enumerate(requests))
        while waiting:
            found = yield list(waiting.values())
            again = {}
            for (position, request), reply in zip(waiting.items(), found, strict=True):
                if reply.error:
                    raise _EndError("request failed", f"{request.name}: {reply.error}", dropped=False)
                self.outcome.counts.update(
                    {REQUESTS: 1, PROMPT_TOKENS: reply.prompt_tokens, REPLY_TOKENS: reply.reply_tokens}
                )
                try:
                    results[position] = replies.parse(reply, form)
                except UnusableError as error:
                    results[position] = error
                    if request.attempt < self.settings.attempts:
                        again[position] = self._templates.again(request, str(error))
            waiting = again
        return results

    def one(self, request: Request, form: Callable[[Any], T | None]) -> Generator[list[Request], list[Reply], T]:
        """Reply to a request that the stream can't do without.

        Raises:
            _EndError: it failed, or no reply is of use.
        """
        (found,) = yield from self.all([request], form)
        if isinstance(found, UnusableError):
            raise _EndError("unusable reply", f"{request.name}: {found}")
        return found


class _Pool:
    """Questions of one example: those with a verified answer, those rejected, and what each was dropped for."""

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self.pairs: list[tuple[str, str]] = []
        self.rejected: list[str] = []
        self._seen: set[str] = set()

    def new(self, proposed: Iterable[str]) -> list[str]:
        """Those of the proposed questions that are to be tried."""
        fresh, counts = [], self._asked.outcome.counts
        for question in proposed:
            counts[QUESTIONS] += 1
            if question.casefold() in self._seen:
                self.drop("repeated", question)
            elif len(question) > MAX_CHARACTERS:
                self.drop("too long", question[:MAX_CHARACTERS])
            elif len(self._seen) >= self._asked.settings.max_questions:
                self.drop("beyond --max-questions", question)
            else:
                self._seen.add(question.casefold())
                fresh.append(question)
        return fresh

    def drop(self, reason: str, detail: str) -> None:
        """Count and note a question that is not used."""
        outcome = self._asked.outcome
        outcome.counts[QUESTIONS_DROPPED] += 1
        outcome.notes.append(Note(QUESTION + reason, f"{outcome.kind}: {detail}"))

    def reject(self, reason: str, question: str, answer: str = "") -> None:
        """Drop a question that was tried, so that it is not proposed again."""
        self.rejected.append(question)
        self.drop(reason, f"{question} -> {answer}" if answer else question)

    def tried(self, questions: list[str]) -> Generator[list[Request], list[Reply], None]:
        """Answer questions from the document alone, each apart, and keep the pairs that are verified."""
        asked, answered = self._asked, []
        found = yield from asked.all([asked.request("answer", question=q) for q in questions], replies.answer)
        for question, answer in zip(questions, found, strict=True):
            if isinstance(answer, UnusableError):
                self.reject(f"no usable answer, {answer}", question)
            elif not answer:
                self.reject("not answered by the document", question)
            elif len(answer) > MAX_CHARACTERS:
                self.reject("answer too long", question, answer[:MAX_CHARACTERS])
            else:
                answered.append((question, answer))
        verdicts = yield from asked.all(
            [asked.request("verify", question=q, answer=a) for q, a in answered], replies.verdict
        )
        for (question, answer), right in zip(answered, verdicts, strict=True):
            if isinstance(right, UnusableError):
                self.reject(f"no usable verdict, {right}", question, answer)
            elif not right:
                self.reject("not verified", question, answer)
            else:
                self.pairs.append((question, answer))

    def listed(self) -> dict[str, str]:
        """Pairs and rejected questions as the coverage check reads them."""
        pairs = "\n".join(f"{n}. {q} -> {a}" for n, (q, a) in enumerate(self.pairs, 1))
        rejected = "\n".join(f"- {q}" for q in self.rejected)
        return {"pairs": pairs or "(none)", "rejected": rejected or "(none)"}


def _pairs(asked: _Asked, kind: str) -> Generator[list[Request], list[Reply], list[tuple[str, str]]]:
    """Questions with verified answers that together cover the document."""
    settings, counts, pool = asked.settings, asked.outcome.counts, _Pool(asked)
    try:
        proposed = yield from asked.one(
            asked.request(kind, max_questions=str(settings.max_questions)), replies.questions
        )
        if not proposed:
            raise _EndError("no question", f"{kind}: the model finds none to ask")
        yield from pool.tried(pool.new(proposed))
        covered = settings.coverage == "off" or (yield from _covered(asked, kind, pool))
        if not covered:
            counts[UNCOVERED] = 1
        if not pool.pairs:
            raise _EndError("no verified question", f"{kind}: {counts[QUESTIONS]} questions, all dropped")
        if not covered and settings.coverage == "required":
            raise _EndError(
                "document not covered",
                f"{kind}: {len(pool.pairs)} verified questions, {counts[ROUNDS]} supplementary rounds",
            )
    except _EndError:
        counts[OF_OTHERS] = counts[QUESTIONS] - counts[QUESTIONS_DROPPED]
        raise
    counts[KEPT] = len(pool.pairs)
    return pool.pairs


def _covered(asked: _Asked, kind: str, pool: _Pool) -> Generator[list[Request], list[Reply], bool]:
    """Ask for what is missing, round by round; False if the rounds are used up, or one brought nothing new."""
    for number in range(asked.settings.max_rounds + 1):
        covered, missing = yield from asked.one(asked.request(f"cover_{kind}", **pool.listed()), replies.coverage)
        if covered:
            return True
        if number == asked.settings.max_rounds:
            break
        fresh = pool.new(missing)
        if not fresh:
            break
        asked.outcome.counts[ROUNDS] += 1
        yield from pool.tried(fresh)
    return False


def _paraphrase(asked: _Asked) -> Generator[list[Request], list[Reply], str]:
    """The text in other words, verified."""
    text = yield from asked.one(asked.request("paraphrase"), replies.paraphrase)
    if text.casefold() == normalise(asked.chunk.text).casefold():
        raise _EndError("paraphrase repeats the text", f"paraphrase: {text[:MAX_CHARACTERS]}")
    if not (yield from asked.one(asked.request("verify_paraphrase", paraphrase=text), replies.verdict)):
        raise _EndError("paraphrase not verified", f"paraphrase: {text[:MAX_CHARACTERS]}")
    return text
