"""The HTTP client of an OpenAI-compatible endpoint, and which models that endpoint offers."""

import asyncio
import logging
from typing import Any

import openai

from clara.endpoints import cleaned, key_of
from clara.errors import InputError
from pipelines.synthesize.endpoint_settings import EndpointSettings


def open_client(settings: EndpointSettings) -> openai.AsyncOpenAI:
    """The HTTP client. Tries are ours, as they count for the rate."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request, else
    return openai.AsyncOpenAI(
        base_url=settings.url,
        api_key=key_of(settings.key_variable) or "none",
        max_retries=0,
        timeout=settings.timeout_seconds,
    )


def headers(settings: EndpointSettings) -> dict[str, Any]:
    """Without a key no authorisation is sent."""
    return {} if key_of(settings.key_variable) else {"Authorization": openai.Omit()}


def only_model(settings: EndpointSettings) -> str:
    """The name of the one model that an endpoint offers.

    Raises:
        InputError: it can't be asked, or offers none or several.
    """

    async def names() -> list[str]:
        client = open_client(settings)
        try:
            listed = await client.with_options(max_retries=3).models.list(extra_headers=headers(settings))
            return sorted(model.id for model in listed.data)
        finally:
            await client.close()

    try:
        found = asyncio.run(names())
    except (openai.OpenAIError, TypeError, ValueError) as error:
        message = cleaned(str(error), key_of(settings.key_variable))
        raise InputError(
            f"--model {settings.url}: cannot list its models ({message}); "
            "start it, correct the URL, or give --model-name"
        ) from error
    if len(found) != 1:
        raise InputError(
            f"--model {settings.url}: offers {', '.join(found[:20]) or 'no model'}; choose one with --model-name"
        )
    return found[0]
