"""What the routes share: limits, the wait for the engine, streams of events, and a client that is gone."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request as HttpRequest
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clara.config.serving import Serving
from clara.errors import InputError, UnavailableError
from clara.model.prompts import Turn
from clara.retrieval.filter import Filter
from clara.serving.engine import Engine
from clara.serving.events import FailedError, Finished, Found, QueueFullError, Request, StoppedError, Worked
from clara.serving.guard import CLIENT_GONE

T = TypeVar("T")


class Service:
    """An engine and its limits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def settings(self) -> Serving:
        """Limits, and the defaults of the system that answers now."""
        return self.engine.settings

    def request(
        self,
        http: HttpRequest,
        questions: Sequence[str],
        num_passages: int | None,
        max_new_tokens: int | None,
        earlier: Sequence[Turn] = (),
        instruction: str = "",
        only: Filter | None = None,
    ) -> Request:
        """What is asked of the engine; None: the default.

        Raises:
            InputError: more is asked for than the configuration allows.
        """
        limits = self.settings
        wanted = limits.num_selected if num_passages is None else num_passages
        tokens = limits.max_new_tokens if max_new_tokens is None else max_new_tokens
        context = sum(len(turn.text) for turn in earlier) + len(instruction)
        for what, value, name in (
            ("questions", len(questions), "max_questions"),
            ("characters of a question", max(map(len, questions)), "max_question_characters"),
            ("characters before the question", context, "max_context_characters"),
            ("passages", wanted, "max_passages"),
            ("tokens of the answer", tokens, "max_answer_tokens"),
        ):
            most = getattr(limits, name)
            if value > most:
                raise InputError(f"{what}: {value}, and this service takes {most} at most (serving.{name}); send less")
        request_id = http.state.request_id
        request = Request(tuple(questions), wanted, tokens, tuple(earlier), instruction, only, request_id)
        self.engine.system.retriever.check(request.questions, wanted, tokens or 1)
        return request

    async def found(self, request: Request) -> Found:
        """The passages of a search."""
        return await self._first(request, Found)

    async def finished(self, request: Request) -> Finished:
        """The whole answer."""
        return await self._first(request, Finished)

    async def worked(self, request: Request) -> Worked:
        """What the work of a request returned."""
        return await self._first(request, Worked)

    async def _first(self, request: Request, kind: type[T]) -> T:
        """The first event of a kind."""
        async with aclosing(self.engine.events(request)) as events:
            async for event in events:
                if isinstance(event, kind):
                    return event
        raise FailedError


class ClientGoneError(Exception):
    """Nobody waits for the reply."""


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """The result of work, which is cancelled when its client is gone.

    Raises:
        ClientGoneError: it is.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def as_json(reply: BaseModel) -> Response:
    """A reply whose form has been checked already."""
    return Response(reply.model_dump_json(), media_type="application/json")


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def streamed(
    http: HttpRequest, events: AsyncGenerator[str, None], on_error: Callable[[int, str], str]
) -> StreamingResponse:
    """Server-sent events. What goes wrong before the first of them is raised; afterwards it is the last of them.

    Args:
        http: the request.
        events: each as it is sent; closed when the client is gone.
        on_error: the event for a status and a message.
    """
    first = await unless_gone(http, anext(events))

    async def all_of_them() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                yield first
                async for event in events:
                    yield event
            except Exception as error:
                status, message = status_of(error)
                yield on_error(status, message)

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def status_of(error: Exception) -> tuple[int, str]:
    """The status of an error, and what the client reads.

    FastAPI makes a wrong body of whatever ends the reading of one; a client that left meanwhile is not one of those.

    Raises:
        Exception: the error itself, which is none of these.
    """
    if isinstance(error, UnavailableError):
        return 503, "a part of the service does not answer now; try again"
    if isinstance(error, InputError):
        return 422, str(error)
    if isinstance(error, QueueFullError):
        return 429, "as many requests wait as this service takes (serving.max_waiting); try again"
    if isinstance(error, TimeoutError):
        return 504, "the answer took longer than this service allows (serving.request_seconds); try again"
    if isinstance(error, StoppedError):
        return 503, "the service is being stopped; try again"
    if isinstance(error, FailedError):
        return 500, "a fault of the service; its log has more under this request id"
    if isinstance(error, ClientGoneError) or isinstance(error.__cause__, ClientDisconnect):
        return CLIENT_GONE, "the client is gone"
    if isinstance(error, HTTPException) and error.status_code == 400:  # FastAPI's only one
        return 400, "parsing the body: it is no JSON in UTF-8; send it so, and not compressed"
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    raise error
