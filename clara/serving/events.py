"""What the engine is asked for, and what it answers: events and errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clara.model.prompts import Turn
from clara.retrieval.answered import Answered, Passage
from clara.retrieval.filter import Filter
from clara.retrieval.retriever import Retriever


class QueueFullError(Exception):
    """As many requests wait as may."""


class StoppedError(Exception):
    """The service is being stopped."""


class FailedError(Exception):
    """A fault of ours ended the request; it is in the log."""


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        questions: one, unless it is a search.
        num_passages: of each question.
        max_new_tokens: longest answer; 0: a search, without an answer.
        earlier: turns of the conversation before the question.
        instruction: of the client, for the model.
        only: documents and sources that passages may come from.
        request_id: for the log.
        work: done in place of a search, between two decoding steps.
    """

    questions: tuple[str, ...]
    num_passages: int
    max_new_tokens: int = 0
    earlier: tuple[Turn, ...] = ()
    instruction: str = ""
    only: Filter | None = None
    request_id: str = ""
    work: Callable[[Retriever], Any] | None = None


@dataclass(frozen=True)
class Found:
    """Passages of each question."""

    passages: tuple[tuple[Passage, ...], ...]


@dataclass(frozen=True)
class Piece:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The whole answer; `stopped`: by the model, and not by the limit of tokens."""

    answered: Answered
    num_prompt_tokens: int
    num_tokens: int
    stopped: bool


@dataclass(frozen=True)
class Worked:
    """What the work of a request returned."""

    result: Any


Event = Found | Piece | Finished | Worked | Exception
