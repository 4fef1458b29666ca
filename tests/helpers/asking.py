"""Asking an endpoint for replies to many requests at once."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clara.config.synthesis import Synthesis
from pipelines.synthesize.endpoint import Endpoint, Spending
from pipelines.synthesize.endpoint_settings import EndpointSettings
from pipelines.synthesize.prompts import Request
from pipelines.synthesize.replies import Reply
from pipelines.synthesize.reply_cache import ReplyCache
from tests.helpers.language_model import LanguageModel

Ask = Callable[..., tuple[list[Reply], Spending]]


def requests(count: int) -> list[Request]:
    return [Request("answer", "Say it.", f"Say {number}.") for number in range(count)]


def settings(url: str, **given: Any) -> EndpointSettings:
    asked = {"max_reply_tokens": Synthesis().max_reply_tokens, "extra_body": Synthesis().extra_body}
    return EndpointSettings(**(asked | {"url": url} | given))


def echo(user: str) -> str:
    return f"heard: {user}"


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask a server for replies to requests, all at once."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(model: LanguageModel | str, asked: Sequence[Request], **given: Any) -> tuple[list[Reply], Spending]:
        async def all_of() -> tuple[list[Reply], Spending]:
            url = model if isinstance(model, str) else model.url
            quick = {"name": "tiny", "retry_seconds": 0.02, "timeout_seconds": 60.0, "tries": 4}
            cache = ReplyCache(tmp_path / "cache")
            endpoint = Endpoint(settings(url, **(quick | given)), cache)
            try:
                return list(await asyncio.gather(*map(endpoint.ask, asked))), endpoint.spending
            finally:
                await endpoint.close()
                cache.close()

        return asyncio.run(all_of())

    return run
