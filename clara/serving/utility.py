"""The route that says what a passage is worth to an answer."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, Field, model_validator

from clara.model.prompts import Turn
from clara.retrieval.retriever import Retriever
from clara.retrieval.utilities import RowUtility, row_utility
from clara.serving.errors import DOCUMENTED
from clara.serving.schemas import Body, Question
from clara.serving.service import Service, as_json, unless_gone


def _row_id(text: str) -> str:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise ValueError("expected the row_id of a passage")
    return text


RowId = Annotated[str, AfterValidator(_row_id), Field(json_schema_extra={"pattern": "^[0-9]{1,19}$"})]


class UtilityBody(Body):
    """An answer, what it was read from, and the passage to leave out."""

    question: Question
    answer: Question
    passages: list[RowId] = Field(min_length=1, description="row_id of each passage of the answer, in their order")
    without: RowId = Field(description="row_id of the passage that is left out")

    @model_validator(mode="after")
    def _once(self) -> "UtilityBody":
        if len(set(self.passages)) < len(self.passages) or self.without not in self.passages:
            raise ValueError("expected each passage once, and the one to leave out among them")
        return self


class UtilityReply(BaseModel):
    """Log-likelihoods of the answer, in nats, and their difference."""

    utility: float = Field(description="with the passage minus without it; above 0: the passage helps")
    given: float = Field(description="log-likelihood of the answer given all passages")
    without: float = Field(description="the same given all other passages")
    num_tokens: int = Field(description="tokens of the answer and its end")


def add_utility(app: APIRouter, service: Service) -> None:
    """Add the route."""

    @app.post("/v1/utility", responses=DOCUMENTED, response_model=UtilityReply)
    async def utility(body: UtilityBody, http: HttpRequest) -> Response:
        """How much more likely a passage makes an answer, the other passages kept."""
        rows, most = [int(row) for row in body.passages], service.settings.max_answer_tokens

        def measure(retriever: Retriever) -> RowUtility:
            return row_utility(retriever, body.question, body.answer, rows, int(body.without), most)

        # The answer is bounded as an earlier turn is, before its tokens are counted.
        request = service.request(http, [body.question], len(rows), 0, [Turn("assistant", body.answer)])
        found = (await unless_gone(http, service.worked(replace(request, work=measure)))).result
        return as_json(
            UtilityReply(utility=found.utility, given=found.given, without=found.without, num_tokens=found.num_tokens)
        )
