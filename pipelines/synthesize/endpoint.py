"""A model behind an OpenAI-compatible endpoint: requests at a rate, retries, and a cache of everything it answered."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import openai
import tenacity

from clara.data.records import whole_characters
from clara.endpoints import cleaned, key_of, retry_after
from clara.errors import InputError
from clara.storage.manifest import hash_of
from pipelines.synthesize import completions
from pipelines.synthesize.endpoint_client import headers, open_client
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.prompts import Request
from pipelines.synthesize.rate_limit import Pace
from pipelines.synthesize.replies import Reply
from pipelines.synthesize.reply_cache import ReplyCache

_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_BREAK_SECONDS = 600.0
_FAILURES_IN_A_ROW = 10
_BYTES_PER_TOKEN = 3  # rather a token too many; what the endpoint counts corrects it
_FATAL = {
    401: "the key in the environment variable {}, where the workers run",
    403: "the key's rights",
    404: "the URL and --model-name",
    405: "the URL",
}
_NO_QUOTA = "insufficient_quota"
_PASSING = (408, 409, 429)
_EMPTY, _TRIES_EMPTY = "empty content", 3  # each of them is paid
_FINAL = {
    "length": "raise --max-reply-tokens: a model that thinks needs room for it",
    "content_filter": "the endpoint filters it",
}


@dataclass
class Spending:
    """What a run has sent and paid."""

    sent: int = 0
    paid: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    usage_estimated: int = 0
    retries: Counter[str] = field(default_factory=Counter)


class _AgainError(Exception):
    """A failure that may pass; `after` seconds, where the other side says."""

    def __init__(self, reason: str, detail: str = "", after: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(f"{reason} {detail}".strip())
        self.reason, self.after, self.unreachable = reason, after, unreachable


class Endpoint:
    """Asks, within one event loop. `close` waits for what is under way, so that nothing that was paid is lost."""

    def __init__(self, settings: EndpointSettings, cache: ReplyCache) -> None:
        self._settings, self._cache = settings, cache
        self._client = open_client(settings)
        self._key = key_of(settings.key_variable)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._requests, self._tokens = Pace(settings.requests_per_minute), Pace(settings.tokens_per_minute)
        self._identity = settings.identity()
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._failures_in_a_row = 0
        self._stopped: InputError | None = None
        self.spending = Spending()

    async def ask(self, request: Request) -> Reply:
        """The reply, from the cache if it is there; with an error where the request failed for good.

        Raises:
            InputError: the endpoint can't be used at all.
        """
        key = hash_of([self._identity, request.key])
        if key in self._under_way:  # two streams may ask the same at once
            return await asyncio.shield(self._under_way[key])
        if (known := self._cache.get(key)) is not None:
            self.spending.cached += 1
            return known
        task = asyncio.create_task(self._pay(key, request))
        self._under_way[key] = task
        task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)  # a reply that is paid is waited for, even if nobody wants it any more

    async def close(self) -> None:
        """Begin nothing new, and wait for the rest."""
        self._stopped = self._stopped or InputError("the job has ended")
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await self._client.close()

    async def _pay(self, key: str, request: Request) -> Reply:
        async with self._slots:
            try:
                reply = await self._tried(request)
            except _AgainError as error:
                reply = Reply("", error=f"{error} ({self._settings.tries} tries)")
                if error.unreachable:
                    self._stop(f"cannot be reached: {error}; start it or correct the URL")
            except openai.APIError as error:
                reply = Reply("", error=self._message(error))
        if reply.error:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
                self._stop(f"failed {_FAILURES_IN_A_ROW} requests in a row, the last with: {reply.error}; see to it")
            return reply
        self._failures_in_a_row = 0
        self._cache.put(key, request.name, reply)
        self.spending.paid += 1
        self.spending.prompt_tokens += reply.prompt_tokens
        self.spending.reply_tokens += reply.reply_tokens
        return reply

    async def _tried(self, request: Request) -> Reply:
        """The reply, after as many tries as it takes and as are allowed."""
        backoff = tenacity.wait_exponential_jitter(
            self._settings.retry_seconds, _LONGEST_WAIT_SECONDS, jitter=self._settings.retry_seconds
        )

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return max(backoff(state), error.after if isinstance(error, _AgainError) else 0.0)

        def stop(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            empty = isinstance(error, _AgainError) and error.reason == _EMPTY
            return state.attempt_number >= min(self._settings.tries, _TRIES_EMPTY if empty else self._settings.tries)

        tries = tenacity.AsyncRetrying(
            stop=stop,
            wait=wait,
            retry=tenacity.retry_if_exception_type(_AgainError),
            reraise=True,
        )
        return await tries(self._send, request)

    async def _send(self, request: Request) -> Reply:
        """One try."""
        settings, body = self._settings, self._settings.body(request)
        estimate = _estimated_tokens(request.system + request.user)
        await self._requests.take(1)
        await self._tokens.take(estimate + settings.max_reply_tokens)
        if self._stopped:
            raise self._stopped
        self.spending.sent += 1
        try:
            # The body is ours as it is: whatever a field is called, and without what was taken out of it.
            response = await self._client.post(
                "/chat/completions", body=body, cast_to=str, options={"headers": headers(settings)}
            )
            reply = self._read(response, estimate)
        except openai.APIError as error:
            again = self._failure(error)
            self.spending.retries[again.reason] += 1
            raise again from error
        except _AgainError as again:
            self.spending.retries[again.reason] += 1
            raise
        self._tokens.correct(reply.prompt_tokens + reply.reply_tokens - estimate - settings.max_reply_tokens)
        return reply

    def _read(self, text: Any, estimate: int) -> Reply:
        """The body of an answer as a reply.

        Raises:
            _AgainError: it is no completion, or one without content.
            InputError: it is an error that ends the job.
        """
        try:
            body = json.loads(text.lstrip("\ufeff"), strict=False)  # line ends inside strings, as proxies write them
            if isinstance(body, dict) and body.get("error") and not body.get("choices"):
                return self._refused(body["error"])
            choice = body["choices"][0]
            content = whole_characters(completions.content(choice["message"]))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise _AgainError(
                "no completion", f"({type(error).__name__}: {self._clean(str(error))}) in {self._clean(str(text))!r}"
            ) from error
        reason = str(choice.get("finish_reason"))
        if not content.strip():
            if reason in _FINAL:
                return Reply("", error=f"no content, finish_reason is {reason!r}; {_FINAL[reason]}")
            raise _AgainError(_EMPTY, f"(finish_reason {reason!r})")
        counts = completions.usage(body)
        if counts is None:
            self.spending.usage_estimated += 1
            counts = (estimate, _estimated_tokens(content))
        return Reply(self._without_key(content), reason == "length", *counts)

    def _refused(self, error: Any) -> Reply:
        """An error that came with status 200.

        Raises:
            _AgainError: it may pass.
            InputError: it ends the job.
        """
        status, message = completions.error_of(error)
        message = self._clean(message)
        if isinstance(error, dict) and error.get("code") == _NO_QUOTA:
            self._stop(f"has no more quota: {message}; add some")
        if status in _FATAL:
            self._stop(f"refuses with {message}; check {_FATAL[status].format(self._settings.key_variable)}")
        if 400 <= status < 500 and status not in _PASSING:
            return Reply("", error=f"refused with {message} ({status})")
        raise _AgainError(f"error {status or ''}".strip(), message)

    def _failure(self, error: openai.APIError) -> _AgainError:
        """An error as one that may pass.

        Raises:
            InputError: it ends the job.
            openai.APIError: the error itself; it ends this request.
        """
        if isinstance(error, openai.APITimeoutError):
            return _AgainError("time-out", f"after {self._settings.timeout_seconds:g} s")
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__
            unreachable = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
            return _AgainError(
                "not reached" if unreachable else "connection broken",
                self._clean(str(cause or error)),
                unreachable=unreachable,
            )
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if status in _FATAL:
            self._stop(
                f"refuses with {self._message(error)}; check {_FATAL[status].format(self._settings.key_variable)}"
            )
        if error.code == _NO_QUOTA:
            self._stop(f"has no more quota: {self._message(error)}; add some")
        if status not in _PASSING and status < 500:
            raise error
        after = retry_after(error.response.headers) if isinstance(error, openai.APIStatusError) else 0.0
        if after > _LONGEST_BREAK_SECONDS:
            self._stop(f"asks to wait for {after:.0f} seconds ({self._message(error)}); wait")
        if after:
            self._requests.hold(after)
        return _AgainError(str(status), self._message(error), after)

    def _stop(self, what: str) -> None:
        self._stopped = InputError(
            f"--model {self._settings.url}: the endpoint {what}, and run the same command again: what was answered "
            "is not paid twice"
        )
        raise self._stopped

    def _message(self, error: openai.APIError) -> str:
        return self._clean(str(error.message))

    def _clean(self, text: str) -> str:
        return cleaned(text, self._key)

    def _without_key(self, text: str) -> str:
        """Endpoints may repeat the key in what they say; it is written down nowhere."""
        return text.replace(self._key, "***") if self._key else text


def _estimated_tokens(text: str) -> int:
    return 1 + len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN
