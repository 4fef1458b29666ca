"""Bodies of requests and replies below /v1/."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from clara.data.records import encodable
from clara.retrieval import answered
from clara.retrieval.filter import Filter


class Body(BaseModel):
    """The body of a request; unknown fields, and values of another type (`"3"` or `true` for 3), are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _text(text: str) -> str:
    if not text.strip() or not encodable(text):
        raise ValueError("expected some text, in whole characters")
    return text


Question = Annotated[str, AfterValidator(_text), Field(json_schema_extra={"pattern": r"\S"})]


class Filtered(Body):
    """A body that may say where passages come from."""

    documents: list[str] | None = Field(None, min_length=1, description="ids of the documents; not given: all")
    sources: list[str] | None = Field(None, min_length=1, description="input files of the corpus; not given: all")

    @property
    def only(self) -> Filter:
        """Documents and sources as a filter; None if neither is given."""
        return Filter(
            None if self.documents is None else tuple(self.documents),
            None if self.sources is None else tuple(self.sources),
        )


class SearchBody(Filtered):
    """The body of a search."""

    questions: list[Question] = Field(min_length=1, description="texts, each searched for by itself")
    k: int = Field(20, ge=1, description="passages of each question; never more than the MEMORY holds")


class AnswerBody(Filtered):
    """The body of a request for answers."""

    question: Question
    passages: int | None = Field(
        None, ge=1, description="that the answer is read from; not given: serving.num_selected"
    )
    max_tokens: int | None = Field(None, ge=1, description="longest answer; not given: serving.max_new_tokens")
    stream: bool = Field(
        False,
        description="reply as server-sent events: `passages`, then `piece` for each piece of text, then `answer`; or "
        "`error`",
    )


class Passage(BaseModel):
    """A passage, best first."""

    document_id: str
    row_id: str = Field(description="64 bits; a text, as JavaScript rounds larger numbers")
    title: str
    text: str
    score: float
    sources: list[str] = Field(description="that found it")
    why: dict[str, float] = Field(description="what each source adds to its score z, in logits")


class SearchReply(BaseModel):
    """Passages of each question, in the questions' order."""

    results: list[list[Passage]]


class AnswerReply(BaseModel):
    """An answer and the passages that it was read from."""

    question: str
    text: str
    passages: list[Passage]
    unread: str = Field(description="the end of a question that is too long to be searched for as a whole")


class FoundPassages(BaseModel):
    """Of a stream: what the answer is read from."""

    passages: list[Passage]


class AnswerPiece(BaseModel):
    """Of a stream: the next piece of the answer's text."""

    text: str


def passages_of(found: Iterable[answered.Passage]) -> list[Passage]:
    """Passages as they are sent."""
    return [
        Passage(
            document_id=p.document_id,
            row_id=str(p.row_id),
            title=p.title,
            text=p.text,
            score=p.score,
            sources=list(p.sources),
            why=dict(p.why),
        )
        for p in found
    ]


def reply_of(found: answered.Answered) -> AnswerReply:
    """An answer as it is sent."""
    passages = passages_of(found.passages)
    return AnswerReply(question=found.question, text=found.text, passages=passages, unread=found.unread)
