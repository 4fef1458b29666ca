"""The application: routes, errors, and the engine's life."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

import clara
from clara.config.serving import Serving
from clara.errors import InputError
from clara.serving.browse import add_browse
from clara.serving.chat import add_chat
from clara.serving.engine import Engine
from clara.serving.errors import DOCUMENTED, STREAMED, ErrorReply, detail, error_response
from clara.serving.evaluation import EvaluationReply, Report, add_evaluation
from clara.serving.events import FailedError, Finished, Found, Piece, QueueFullError, Request, StoppedError
from clara.serving.follow import Follower
from clara.serving.guard import AGAINST, Guard
from clara.serving.metrics import Metrics
from clara.serving.page import add_page
from clara.serving.registry import Describe, add_registry
from clara.serving.schemas import (
    AnswerBody,
    AnswerPiece,
    AnswerReply,
    FoundPassages,
    SearchBody,
    SearchReply,
    passages_of,
    reply_of,
)
from clara.serving.service import ClientGoneError, Service, as_json, status_of, streamed, unless_gone
from clara.serving.utility import add_utility
from clara.system import System


def make_app(
    system: System,
    settings: Serving,
    *,
    key: str = "",
    metrics: Metrics | None = None,
    follow: Callable[[Engine, Metrics], Follower] | None = None,
    against: System | None = None,
    describe: Describe | None = None,
    evaluation: EvaluationReply | None = None,
    report: Report | None = None,
) -> FastAPI:
    """The service of a system; its engine runs from start-up to shutdown.

    Args:
        system: used by nobody else meanwhile.
        settings: limits.
        key: that requests below `/v1/` must bear; empty: none.
        metrics: what is counted into; None: new ones.
        follow: makes what lets newer systems take over; None: nothing does.
        against: a second system, which answers below `/against/` and is compared with the first on the page; its
            engine is not counted.
        describe: reads what is known of the registered model that is served; None: there is none.
        evaluation: report that the page shows; None: none is known.
        report: reads that of a version of the registered model; None: there is none.

    Raises:
        InputError: see `Engine`.
    """
    counted = metrics or Metrics()
    engine = Engine(system, settings, counted)
    follower = follow(engine, counted) if follow else None
    engines = {"": engine} | ({AGAINST: Engine(against, settings, Metrics())} if against else {})

    app = FastAPI(
        title="CLaRa",
        version=clara.__version__,
        description="Answers with the passages that they come from.",
        lifespan=_life_of([*engines.values(), *([follower] if follower else [])]),
        docs_url=None,  # its page loads a program from a public host; the page at / lists the requests
        redoc_url=None,
    )
    app.state.engine = engine
    app.add_middleware(Guard, settings=settings, metrics=counted, key=key)
    for error in (InputError, QueueFullError, TimeoutError, StoppedError, FailedError, ClientGoneError, HTTPException):
        app.add_exception_handler(error, _as_response)
    app.add_exception_handler(RequestValidationError, _as_refusal)
    _add_health(app, engine, counted, follower)
    for prefix, each in engines.items():
        service, routes = Service(each), APIRouter(prefix=prefix)
        _add_answers(routes, service)
        add_utility(routes, service)
        add_browse(routes, service)
        app.include_router(routes)
    add_chat(app, Service(engine))
    add_registry(app.router, describe)
    add_evaluation(app.router, evaluation or EvaluationReply(), report)
    add_page(app)
    return app


def _life_of(threads: Sequence[Engine | Follower]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Starts threads in this order when the service starts, and stops them in the opposite one."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        for each in threads:
            each.start()
        yield
        for each in reversed(threads):
            each.stop()

    return life


def _as_response(_: HttpRequest, error: Exception) -> Response:
    response = error_response(*status_of(error))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})  # `Allow` of a 405
    return response


def _as_refusal(_: HttpRequest, error: Exception) -> Response:
    """Where a body is wrong and why, without repeating what it holds."""
    found = cast(RequestValidationError, error).errors()
    lines = [f"{_place(each)}: {_why(each)}" for each in found[:10]]
    return error_response(422, "; ".join(lines).encode(errors="replace").decode())


def _place(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"body, character {error['loc'][1] + 1}"
    return ".".join(map(str, error["loc"][1:])) or "body"


_WHY = {
    "none_required": "this service does not do that; leave it out",
    "json_invalid": "JSON decode error; send one complete JSON object",
    "model_attributes_type": "expected a JSON object; send one, with Content-Type: application/json",
}
"""What is wrong, in words, by pydantic's name of it."""


def _why(error: dict[str, Any]) -> str:
    return _WHY.get(error["type"], str(error["msg"]).removeprefix("Value error, "))


def _add_health(app: FastAPI, engine: Engine, metrics: Metrics, follower: Follower | None) -> None:
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"model": ErrorReply}})
    async def ready() -> Response:
        """Requests are answered: 200, else 503."""
        if not engine.ready:
            return error_response(503, "the service does not answer now")
        store = engine.system.retriever.store
        state = {"status": "ready", "rows": len(store), "fingerprint": store.fingerprint}
        return JSONResponse(state | ({"follow": follower.state} if follower else {}))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_answers(app: APIRouter, service: Service) -> None:
    @app.post("/v1/search", responses=DOCUMENTED, response_model=SearchReply)
    async def search(body: SearchBody, http: HttpRequest) -> Response:
        """The best passages of each question."""
        request = service.request(http, body.questions, body.k, 0, only=body.only)
        found = await unless_gone(http, service.found(request))
        return as_json(SearchReply(results=[passages_of(own) for own in found.passages]))

    @app.post("/v1/answers", responses=DOCUMENTED | STREAMED, response_model=AnswerReply)
    async def answers(body: AnswerBody, http: HttpRequest) -> Response:
        """An answer and the passages that it was read from."""
        request = service.request(http, [body.question], body.passages, body.max_tokens, only=body.only)
        if body.stream:
            return await streamed(http, _answer_events(service.engine, request), _error_event)
        return as_json(reply_of((await unless_gone(http, service.finished(request))).answered))


async def _answer_events(engine: Engine, request: Request) -> AsyncGenerator[str, None]:
    """`passages`, `piece`s, then the whole `answer`."""
    async with aclosing(engine.events(request)) as events:
        async for event in events:
            if isinstance(event, Found):
                yield _event("passages", FoundPassages(passages=passages_of(event.passages[0])).model_dump_json())
            elif isinstance(event, Piece):
                yield _event("piece", AnswerPiece(text=event.text).model_dump_json())
            elif isinstance(event, Finished):
                yield _event("answer", reply_of(event.answered).model_dump_json())


def _error_event(status: int, message: str) -> str:
    return _event("error", ErrorReply(error=detail(status, message)).model_dump_json())


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"
