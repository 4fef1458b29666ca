"""The client against a faulty server: nothing lost, nothing paid twice, rates kept, the key never logged."""

import asyncio
import logging
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from clara.endpoints import check_url
from clara.errors import InputError
from pipelines.synthesize.endpoint_client import only_model
from pipelines.synthesize.prompts import Request
from pipelines.synthesize.rate_limit import Pace
from pipelines.synthesize.replies import Reply
from pipelines.synthesize.reply_cache import FILE, ReplyCache
from tests.helpers.asking import Ask, echo, requests, settings
from tests.helpers.language_model import LanguageModel

KEY = "sk-very-secret-0123456789"


def test_replies_come_in_order_and_are_paid_once(ask: Ask) -> None:
    with LanguageModel(echo).running() as model:
        found, spent = ask(model, requests(20), concurrency=4)
        assert [r.text for r in found] == [f"heard: Say it.\n\nSay {n}." for n in range(20)]
        assert model.most_at_once <= 4
        assert (spent.sent, spent.paid, spent.cached) == (20, 20, 0)
        assert spent.prompt_tokens == sum(r.prompt_tokens for r in found) == sum(s.tokens for s in model.seen)
        again, spent = ask(model, requests(21))
        assert again[:20] == found
        assert (spent.sent, spent.paid, spent.cached) == (1, 1, 20)
        assert set(model.paid.values()) == {1}


def test_one_prompt_asked_by_many_at_once_is_paid_once(ask: Ask) -> None:
    with LanguageModel(echo, latency_seconds=0.2).running() as model:
        found, spent = ask(model, requests(2) * 10)
        assert len(model.seen) == spent.paid == 2
        assert [r.text for r in found[:2]] * 10 == [r.text for r in found]


@pytest.mark.parametrize("fault", ["429", "500", "503", "408", "shape", "cut", "closed"])
def test_what_fails_for_a_while_is_tried_again(ask: Ask, fault: str) -> None:
    def faulty(user: str, before: int) -> str:
        return fault if before < 2 and user.endswith(("1.", "3.")) else ""

    with LanguageModel(echo, faulty).running() as model:
        found, spent = ask(model, requests(5))
        assert [r.text for r in found] == [echo(f"Say it.\n\nSay {n}.") for n in range(5)]
        assert sum(spent.retries.values()) == 4
        assert spent.sent == 9
        assert set(model.paid.values()) == {1}
        assert len(model.paid) == 5


def test_slow_answers_time_out_and_are_tried_again(ask: Ask) -> None:
    with LanguageModel(
        echo, lambda user, before: "slow" if not before and "Say 1" in user else "", slow_seconds=7
    ).running() as model:
        found, spent = ask(model, requests(3), timeout_seconds=4.0)
        assert [r.error for r in found] == [""] * 3
        assert spent.retries["time-out"] >= 1


@pytest.mark.parametrize(("fault", "tried"), [("500", 4), ("shape", 4), ("closed", 4), ("400", 1), ("422", 1)])
def test_one_poisoned_prompt_fails_alone(ask: Ask, fault: str, tried: int) -> None:
    with LanguageModel(echo, lambda user, before: fault if "Say 2." in user else "").running() as model:
        found, _ = ask(model, requests(5))
        assert [bool(r.error) for r in found] == [False, False, True, False, False]
        assert sum(s.done == fault for s in model.seen) == tried
        _, spent = ask(model, requests(5))
        assert (spent.cached, spent.paid) == (4, 0), "a failure is not kept as a reply"


@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", "check the key"), ("403", "check the key's rights"), ("404", "--model-name"), ("quota", "no more quota")],
)
def test_permanent_errors_end_the_job_at_once(ask: Ask, fault: str, message: str) -> None:
    with LanguageModel(echo, lambda user, before: fault).running() as model:
        with pytest.raises(InputError, match=message):
            ask(model, requests(50), concurrency=2)
        assert len(model.seen) <= 4


def test_an_outage_ends_the_job_and_what_was_paid_stays(ask: Ask) -> None:
    with LanguageModel(
        echo, lambda user, before: "500" if len(user) > len("Say it.\n\nSay 9.") else ""
    ).running() as model:
        with pytest.raises(InputError, match=r"failed 10 requests in a row, the last with: 500 .*status 500"):
            ask(model, requests(200), concurrency=3, tries=2)
        assert len(model.seen) < 60
        found, spent = ask(model, requests(10))
        assert (len(found), spent.cached) == (10, 10)


def test_nobody_there(ask: Ask) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=r"cannot be reached: not reached .* \(|start it or correct the URL"):
        ask(url, requests(3), tries=2)
    with pytest.raises(InputError, match="cannot list its models"):
        only_model(settings(url))


def test_the_other_sides_break_is_kept_by_all(ask: Ask) -> None:
    with LanguageModel(
        echo, lambda user, before: "429" if "Say 0." in user and not before else "", retry_after="1"
    ).running() as model:
        found, _ = ask(model, requests(30), concurrency=1)
        assert not any(r.error for r in found)
        refused = next(s.at for s in model.seen if s.done == "429")
        later = [s.at - refused for s in model.seen if s.at > refused]
        assert len(later) == 30
        assert min(later) >= 0.95
    impatient = LanguageModel(echo, lambda user, before: "429", retry_after="9999")
    with impatient.running() as model, pytest.raises(InputError, match="asks to wait for 9999"):
        ask(model, requests(40)[30:])


def test_requests_a_minute_are_kept_with_every_try_counted(ask: Ask) -> None:
    with LanguageModel(echo, lambda user, before: "" if before else "500").running() as model:
        began = time.monotonic()
        ask(model, requests(10), requests_per_minute=600, concurrency=10)
        times = sorted(s.at - began for s in model.seen)
        assert len(times) == 20
        assert all(at >= 0.1 * number for number, at in enumerate(times)), "ten a second, evenly, from the first on"


def test_tokens_a_minute_are_kept(ask: Ask) -> None:
    with LanguageModel(lambda user: "x" * 400).running() as model:
        asked = [Request("answer", "", f"{n} " + "word " * 400) for n in range(8)]
        began = time.monotonic()
        _, spent = ask(model, asked, tokens_per_minute=60_000, max_reply_tokens=100, concurrency=8)
        seconds = time.monotonic() - began
        total = spent.prompt_tokens + spent.reply_tokens
        # 1,000 tokens a second. The last request need not wait for its own.
        assert seconds >= (total - total / 8) / 1000 * 0.95


def test_the_key_is_sent_and_never_shown(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with LanguageModel(
        lambda user: f"my key is {KEY}", lambda user, before: "400" if "Say 1" in user else "", key=KEY
    ).running() as model:
        monkeypatch.setenv("MY_KEY", KEY)
        found, _ = ask(model, requests(3), key_variable="MY_KEY")
        assert [r.text for r in found] == ["my key is ***", "", "my key is ***"]
        assert found[1].error == "status 400 with key ***" or "***" in found[1].error
        assert only_model(settings(model.url, key_variable="MY_KEY")) == "tiny"
        monkeypatch.setenv("MY_KEY", "wrong")
        with pytest.raises(InputError, match="check the key"):
            ask(model, requests(5), key_variable="MY_KEY")
    assert KEY.encode() not in (tmp_path / "cache" / FILE).read_bytes()
    assert KEY not in caplog.text


def test_without_a_key_none_is_sent(ask: Ask) -> None:
    with LanguageModel(echo).running() as model:  # refuses any authorisation
        assert not ask(model, requests(1))[0][0].error


@pytest.mark.parametrize(
    "url",
    ["http://me:pw@host/v1", "http://host/v1?key=sk-1", "http://host/v1#x", "http://", "ftp:///x", "http://host:x/v1"],
)
def test_urls_with_secrets_or_without_a_host_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="--model: ") as caught:
        check_url(url, "--model")
    assert "pw" not in str(caught.value)
    assert "sk-1" not in str(caught.value)


def test_what_is_sent() -> None:
    request = Request("answer", "Be brief.", "Who?")
    plain = settings("http://x/v1", name="m")
    assert plain.body(request) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
        "temperature": 0.0,
        "max_tokens": 1024,
    }
    extra = '{"max_tokens": null, "max_completion_tokens": 9, "chat_template_kwargs": {"enable_thinking": false}}'
    other = settings("http://x/v1", name="m", extra_body=extra, system_role=False).body(request)
    assert other["messages"] == [{"role": "user", "content": "Be brief.\n\nWho?"}]
    assert "max_tokens" not in other
    assert other["max_completion_tokens"] == 9
    assert other["chat_template_kwargs"] == {"enable_thinking": False}
    assert plain.identity() == settings("http://elsewhere/v1", name="m", concurrency=1).identity(), (
        "a model that moves is the same"
    )


def test_another_model_or_setting_is_another_reply(ask: Ask) -> None:
    with LanguageModel(echo).running() as model:
        for given in ({}, {"name": "other"}, {"temperature": 0.5}, {"max_reply_tokens": 9}, {}):
            ask(model, requests(1), **given)
        assert len(model.seen) == 4


def test_several_models_want_a_choice() -> None:
    with (
        LanguageModel(models=("b", "a")).running() as model,
        pytest.raises(InputError, match="offers a, b; choose one with --model-name"),
    ):
        only_model(settings(model.url))


def test_usage_that_is_not_reported_is_estimated(ask: Ask) -> None:
    with LanguageModel(echo).running() as model:
        model.usage = False
        (found,), spent = ask(model, requests(1))
        assert spent.usage_estimated == 1
        assert found.prompt_tokens == 1 + len("Say it.Say 0.") // 3


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(InputError, match=rf"--cache .*{FILE}: file is not a database; .*move the file away"):
        ReplyCache(tmp_path)


def test_a_reply_is_on_disk_before_it_is_used(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.put("k", "answer", Reply("text", True, 3, 4))
    cache.put("k", "answer", Reply("another"))
    with sqlite3.connect(tmp_path / FILE) as other:  # as the next process sees it while this one lives
        assert other.execute("SELECT text, cut, prompt_tokens, reply_tokens FROM replies").fetchall() == [
            ("text", 1, 3, 4)
        ]
    assert (cache.get("k"), cache.get("x"), cache.totals()) == (Reply("text", True, 3, 4), None, (1, 3, 4))


def test_a_pace_gives_no_burst_after_a_rest_or_a_break() -> None:
    """Nothing begins before its time; on a busy machine it may begin later."""

    async def starts() -> tuple[float, list[float]]:
        pace = Pace(per_minute=1200)
        await pace.take(1)
        await asyncio.sleep(0.3)
        began, found = time.monotonic(), list[float]()

        async def one() -> None:
            await pace.take(1)
            found.append(time.monotonic() - began)

        tasks = [asyncio.create_task(one()) for _ in range(6)]
        await asyncio.sleep(0.12)
        held = time.monotonic() - began
        pace.hold(0.5)
        await asyncio.gather(*tasks)
        return held, found

    held, found = asyncio.run(starts())
    assert len(found) == 6
    assert all(start >= 0.05 * number for number, start in enumerate(found))
    after = [start for start in found if start > held]
    assert len(after) >= 2
    assert all(start >= held + 0.5 + 0.05 * number for number, start in enumerate(sorted(after)))


@pytest.mark.parametrize(
    ("url", "message"),
    [("ftp://x/v1", "ftp:// is no scheme of an endpoint; expected http or https"), ("http://", "not the URL")],
)
def test_addresses_that_are_none_are_refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_url(url, "--model")
