"""The OpenAI-compatible routes: chat completions and models.

The last message, of the user, is the question; earlier ones are context. Decoding is greedy and calls no tools:
settings of other things are taken only at the values that change nothing, and refused otherwise.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, Field, model_validator

from clara.data.records import encodable
from clara.model.prompts import Turn
from clara.retrieval import answered
from clara.serving.engine import Engine
from clara.serving.errors import DOCUMENTED, STREAMED, ErrorReply, detail, error_response
from clara.serving.events import Finished, Found, Piece, Request
from clara.serving.schemas import Body, Filtered, Passage, passages_of
from clara.serving.service import Service, as_json, streamed, unless_gone


class UrlCitation(BaseModel):
    """The passage that the whole answer cites; its url is the document's id."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    """A citation, as the OpenAI API has it."""

    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="taken and not used")
    annotations: list[Annotation] | None = Field(None, description="of an earlier reply; taken and not used")
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        """Its text; parts are lines."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class TextFormat(Body):
    """The form of an answer: text."""

    type: Literal["text"]


class StreamOptions(Body):
    """What a stream holds beside the answer."""

    include_usage: bool = False


class ChatBody(Filtered):
    """A chat completion of the OpenAI API. `passages`, `documents` and `sources` are additions."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    passages: int | None = Field(None, ge=1, description="that the answer is read from")
    temperature: Literal[0] | None = None
    top_p: Literal[1] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    seed: int | None = Field(None, description="taken and not needed: equal questions have equal answers")
    user: str | None = Field(None, description="taken and not used")
    logprobs: Literal[False] | None = None
    store: Literal[False] | None = None
    response_format: TextFormat | None = None
    stop: None = None
    top_logprobs: None = None
    logit_bias: None = None
    tools: None = None
    tool_choice: Literal["none"] | None = None
    functions: None = None
    function_call: Literal["none"] | None = None

    @model_validator(mode="after")
    def _asks(self) -> "ChatBody":
        question = self.messages[-1]
        if question.role != "user" or not question.text.strip():
            raise ValueError("the last message has to be the user's, with some text: it is the question")
        if not all(encodable(message.text) for message in self.messages):
            raise ValueError("expected texts in whole characters")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are both given; send one")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        return self

    @property
    def earlier(self) -> list[Turn]:
        """Turns before the question."""
        return [
            Turn("user" if message.role == "user" else "assistant", message.text)
            for message in self.messages[:-1]
            if message.role in ("user", "assistant")
        ]

    @property
    def instruction(self) -> str:
        """What system and developer say."""
        return "\n".join(m.text for m in self.messages[:-1] if m.role in ("system", "developer"))


class ReplyMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    annotations: list[Annotation]


class Choice(BaseModel):
    """The answer; there is always exactly one."""

    index: Literal[0] = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    """Tokens; the prompt's include its memory slots."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatReply(BaseModel):
    """A chat completion; `passages` and `unread` (see `AnswerReply`) are additions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    passages: list[Passage]
    unread: str


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "clara"


class ModelList(BaseModel):
    """The list of models, which has one entry."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def add_chat(app: FastAPI, service: Service) -> None:
    """Add the OpenAI-compatible routes."""
    name, started = service.settings.model_name, int(time.time())
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": ErrorReply, "description": "no such model"}}

    def no_model(asked: str) -> Response:
        return error_response(404, f"model {asked[:100]!r} is not served here; this is {name!r}", "model_not_found")

    @app.get("/v1/models", responses={401: DOCUMENTED[401]})
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[ModelCard(id=name, created=started)])

    @app.get("/v1/models/{model:path}", responses={401: DOCUMENTED[401], **unknown}, response_model=ModelCard)
    async def model(model: str) -> Any:
        """The model, by its name."""
        return ModelCard(id=name, created=started) if model == name else no_model(model)

    @app.post("/v1/chat/completions", responses=DOCUMENTED | STREAMED | unknown, response_model=ChatReply)
    async def completions(body: ChatBody, http: HttpRequest) -> Response:
        """An answer to the last message, with the passages that it was read from."""
        if body.model != name:
            return no_model(body.model)
        tokens = body.max_tokens or body.max_completion_tokens
        question = body.messages[-1].text
        request = service.request(http, [question], body.passages, tokens, body.earlier, body.instruction, body.only)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await streamed(http, _chunks(service.engine, request, head, usage), _error_chunk)
        return as_json(_reply(await unless_gone(http, service.finished(request)), head))


def _reply(finished: Finished, head: dict[str, Any]) -> ChatReply:
    answered = finished.answered
    message = ReplyMessage(content=answered.text, annotations=_annotations(answered.passages, answered.text))
    choice = Choice(message=message, finish_reason=_reason(finished))
    passages = passages_of(answered.passages)
    return ChatReply(**head, choices=[choice], usage=_usage(finished), passages=passages, unread=answered.unread)


def _annotations(passages: Sequence[answered.Passage], text: str) -> list[Annotation]:
    return [
        Annotation(url_citation=UrlCitation(start_index=0, end_index=len(text), title=p.title, url=p.document_id))
        for p in passages
    ]


def _reason(finished: Finished) -> Literal["stop", "length"]:
    return "stop" if finished.stopped else "length"


def _usage(finished: Finished) -> Usage:
    prompt, answer = finished.num_prompt_tokens, finished.num_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


async def _chunks(engine: Engine, request: Request, head: dict[str, Any], usage: bool) -> AsyncGenerator[str, None]:
    """Chunks of the OpenAI API: passages with the first, annotations with the last."""
    async with aclosing(engine.events(request)) as events:
        async for event in events:
            if isinstance(event, Found):
                passages = [passage.model_dump() for passage in passages_of(event.passages[0])]
                yield _chunk(head, {"role": "assistant", "content": ""}, passages=passages)
            elif isinstance(event, Piece):
                yield _chunk(head, {"content": event.text})
            elif isinstance(event, Finished):
                cited = _annotations(event.answered.passages, event.answered.text)
                delta = {"annotations": [annotation.model_dump() for annotation in cited]}
                yield _chunk(head, delta, _reason(event), unread=event.answered.unread)
                if usage:
                    yield _data({**head, "object": _CHUNK, "choices": [], "usage": _usage(event).model_dump()})
                yield "data: [DONE]\n\n"


_CHUNK = "chat.completion.chunk"


def _chunk(head: dict[str, Any], delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
    return _data({**head, "object": _CHUNK, "choices": [choice], **more})


def _error_chunk(status: int, message: str) -> str:
    return _data(ErrorReply(error=detail(status, message)).model_dump())


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
