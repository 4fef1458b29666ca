"""What endpoints answer instead of a plain completion: what was paid for is used, what is empty is asked again."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from clara.errors import InputError
from pipelines.synthesize.reply_cache import FILE, ReplyCache
from tests.helpers.asking import Ask, echo, requests
from tests.helpers.language_model import LanguageModel

TEXT = {"type": "text", "text": "So it is."}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "They want words."}]}
CALL = {"type": "function", "function": {"name": "reply", "arguments": '{"a": 1}'}}


def saying(**message: object) -> Any:
    def body(answer: dict[str, Any]) -> dict[str, Any]:
        choice = {"finish_reason": "stop", "message": {"role": "assistant"} | message}
        return answer | {"choices": [choice]}

    return body


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"content": [THOUGHT, TEXT]}, "So it is."),
        ({"content": [TEXT, {"type": "output_text", "text": " And so on."}]}, "So it is. And so on."),
        ({"content": ["So ", "it is."]}, "So it is."),
        ({"content": [{"type": "text", "text": {"value": "So it is.", "annotations": []}}]}, "So it is."),
        ({"content": TEXT}, "So it is."),
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": None, "tool_calls": [CALL]}, '{"a": 1}'),
        (
            {"content": "Half of a pair, \ud83d, and both, \ud83d\ude00."},
            "Half of a pair, \ufffd, and both, \U0001f600.",
        ),
    ],
)
def test_content_in_any_form_is_read_and_paid_once(ask: Ask, message: dict[str, Any], expected: str) -> None:
    with LanguageModel(echo, body=saying(**message)).running() as model:
        (found,), spent = ask(model, requests(1))
        assert (found.text, found.error, spent.sent, spent.paid) == (expected, "", 1, 1)
        _, again = ask(model, requests(1))
        assert again.cached == 1


@pytest.mark.parametrize("content", [None, "", " \n", [], [THOUGHT]])
def test_empty_content_is_asked_again_and_never_kept(ask: Ask, tmp_path: Path, content: object) -> None:
    empty = saying(content=content, reasoning_content="They want words.")
    with LanguageModel(echo, body=empty).running() as model:
        (found,), spent = ask(model, requests(1))
        assert found.error.startswith("empty content (finish_reason 'stop')")
        assert (spent.sent, spent.paid) == (3, 0)
    with LanguageModel(echo, body=lambda a: empty(a) if len(model.seen) == 1 else a).running() as model:
        (found,), spent = ask(model, requests(1))
        assert (found.text, spent.sent, spent.paid) == (echo("Say it.\n\nSay 0."), 2, 1)
    cache = ReplyCache(tmp_path / "cache")
    assert cache.totals()[0] == 1


@pytest.mark.parametrize(("reason", "remedy"), [("length", "--max-reply-tokens"), ("content_filter", "filters it")])
def test_empty_content_that_stays_empty_is_asked_once(ask: Ask, reason: str, remedy: str) -> None:
    def body(answer: dict[str, Any]) -> dict[str, Any]:
        return answer | {"choices": [{"finish_reason": reason, "message": {"content": None}}]}

    with LanguageModel(echo, body=body).running() as model:
        (found,), spent = ask(model, requests(1))
        assert remedy in found.error
        assert (spent.sent, spent.paid) == (1, 0)


@pytest.mark.parametrize(
    ("error", "sent", "message"),
    [
        ({"message": "overloaded", "code": 503}, 4, "error 503 overloaded"),
        ({"message": "too fast", "code": "429"}, 4, "error 429 too fast"),
        ("the worker died", 4, "error the worker died"),
        ({"message": "prompt too long", "code": 400}, 1, "refused with prompt too long (400)"),
    ],
)
def test_an_error_with_status_200_is_an_error(ask: Ask, error: object, sent: int, message: str) -> None:
    with LanguageModel(echo, body=lambda _: {"error": error}).running() as model:
        (found,), spent = ask(model, requests(1))
        assert message in found.error
        assert (spent.sent, spent.paid) == (sent, 0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"message": "who are you?", "code": 401}, "refuses with who are you"),
        ({"message": "no money", "code": "insufficient_quota"}, "has no more quota: no money"),
    ],
)
def test_an_error_with_status_200_may_end_the_job(ask: Ask, error: object, message: str) -> None:
    with LanguageModel(echo, body=lambda _: {"error": error}).running() as model, pytest.raises(InputError) as caught:
        ask(model, requests(1))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "completion_tokens": 3}, {"prompt_tokens": -1}, "none"]
)
def test_without_usage_it_is_estimated(ask: Ask, usage: object) -> None:
    with LanguageModel(echo, body=lambda answer: answer | {"usage": usage}).running() as model:
        (found,), spent = ask(model, requests(1))
        assert spent.usage_estimated == 1
        assert found.prompt_tokens > 0
        assert found.reply_tokens > 0


def test_empty_replies_of_older_programs_are_not_kept(ask: Ask, tmp_path: Path) -> None:
    with LanguageModel(echo).running() as model:
        ask(model, requests(1))
        with sqlite3.connect(tmp_path / "cache" / FILE) as cache:
            cache.execute("UPDATE replies SET text = ' \n'")
        (found,), spent = ask(model, requests(1))
        assert (found.text, spent.paid) == (echo("Say it.\n\nSay 0."), 1)


def test_usage_in_whole_floats_is_usage(ask: Ask) -> None:
    usage = json.loads('{"prompt_tokens": 7.0, "completion_tokens": 3}')
    with LanguageModel(echo, body=lambda answer: answer | {"usage": usage}).running() as model:
        (found,), spent = ask(model, requests(1))
        assert (found.prompt_tokens, found.reply_tokens, spent.usage_estimated) == (7, 3, 0)


def test_a_mark_before_the_body_and_raw_line_ends_in_it_are_read(ask: Ask) -> None:
    def body(answer: dict[str, Any]) -> bytes:
        return ("\ufeff" + json.dumps(answer).replace("\\n", "\n")).encode()

    with LanguageModel(echo, body=body).running() as model:
        (found,), spent = ask(model, requests(1))
    assert (found.text, found.error, spent.sent, spent.paid) == (echo("Say it.\n\nSay 0."), "", 1, 1)
