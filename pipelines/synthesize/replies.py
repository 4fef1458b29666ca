"""A model's reply as what was asked for. Models fence JSON, add prose, cut it short: errors say what is unusable."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from clara.data.records import normalise
from pipelines.synthesize.lenient_json import json_values

MAX_CHARACTERS = 400
"""Longer questions and answers are not used."""

_MAX_REPLY_CHARACTERS = 50_000
_NAMES = "(?:seed:)?(?:think|thinking|thought|thoughts|reasoning)"
_THOUGHT = re.compile(rf"\s*[<\[◁]{_NAMES}[>\]▷]", re.IGNORECASE)
_THOUGHT_END = re.compile(rf"[<\[◁]/{_NAMES}[>\]▷]|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_WORD = re.compile(r"[\W_]*(incorrect|correct|right|wrong|yes|no|true|false)\b", re.IGNORECASE)
_YES, _NO = {"correct", "yes", "right", "true"}, {"incorrect", "no", "wrong", "false"}

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What came back for a request.

    Attributes:
        text: the reply's.
        cut: it ended at the largest number of tokens.
        prompt_tokens, reply_tokens: as the model counts them.
        error: why there is no reply: the request failed for good; empty otherwise.
    """

    text: str
    cut: bool = False
    prompt_tokens: int = 0
    reply_tokens: int = 0
    error: str = ""


class UnusableError(ValueError):
    """A reply that is not of the form asked for; the message says in a few words why."""


def _clean(text: str) -> str:
    return normalise(text.encode("utf-8", "replace").decode())


def _said(text: str) -> str:
    """What a reply says after its thoughts; empty if it ends within them."""
    *_, last = _THOUGHT_END.split(text)
    said = "" if _THOUGHT.match(last) else last.strip()
    if said.startswith('"'):
        with suppress(ValueError):  # JSON within a JSON string
            inner = json.loads(said)
            said = inner if isinstance(inner, str) else said
    return said[-_MAX_REPLY_CHARACTERS:]


def parse(reply: Reply, form: Callable[[Any], T | None]) -> T:
    """The last JSON value of a reply that has the form.

    Args:
        reply: of the model.
        form: gives what a value means, None where it has another form. Sees the plain text last, for replies of one
            word.

    Raises:
        UnusableError: the reply is empty, cut short, holds no JSON, or JSON of another form.
    """
    text = _said(reply.text)
    if not text:
        raise UnusableError("it was cut short" if reply.cut else "it was empty")
    values = list(json_values(text))
    for value in (*values, text):
        if (found := form(value)) is not None:
            return found
    raise UnusableError(
        "it was cut short" if reply.cut else "its JSON has another form" if values else "it holds no JSON"
    )


def questions(value: Any) -> list[str] | None:
    """A list of questions, as `{"questions": […]}`, a bare list, or numbered fields; empty ones left out."""
    if isinstance(value, dict):
        listed = value.get("questions")
        if listed is None:
            numbered = [v for k, v in value.items() if re.fullmatch(r"question[ _]?\d+", str(k), re.IGNORECASE)]
            if not numbered and value:
                return None
            listed = numbered
        value = listed
    if not isinstance(value, list):
        return None
    texts = [item.get("question") if isinstance(item, dict) else item for item in value]
    if not all(isinstance(text, str) for text in texts):
        return None
    return [clean for text in texts if (clean := _clean(str(text)))]


def answer(value: Any) -> str | None:
    """An answer, as `{"answer": …}`; empty where it is null: the document does not say."""
    if not isinstance(value, dict) or "answer" not in value:
        return None
    found = value["answer"]
    if found is None or found != found:  # NaN
        return ""
    if isinstance(found, bool):
        return "yes" if found else "no"
    return _clean(str(found)) if isinstance(found, str | int | float) else None


def verdict(value: Any) -> bool | None:
    """Whether something is right, as `{"verdict": …}` or in one word."""
    if isinstance(value, dict):
        value = value.get("verdict")
        if isinstance(value, str):
            word = _clean(value).lower().strip(".! ")
            return True if word in _YES else False if word in _NO else None
        return value if isinstance(value, bool) else None
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        return None
    found = _WORD.match(value)
    return found[1].lower() in _YES if found else None


def coverage(value: Any) -> tuple[bool, list[str]] | None:
    """Whether the document is covered, and questions for what is missing, as `{"covered": …, "questions": […]}`."""
    if not isinstance(value, dict) or not ({"covered", "questions"} & set(value)):
        return None
    missing = questions(value.get("questions", []))
    if missing is None:
        return None
    covered = value.get("covered", not missing)
    return (covered, missing) if isinstance(covered, bool) else None


def paraphrase(value: Any) -> str | None:
    """A text in other words, as `{"paraphrase": …}`."""
    found = value.get("paraphrase") if isinstance(value, dict) else None
    return (_clean(found) or None) if isinstance(found, str) else None
