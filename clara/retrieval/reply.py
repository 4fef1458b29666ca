"""Replies of a service: an answer and its passages as a typed record, which becomes JSON or an MLflow schema."""

from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from clara.retrieval.answered import Answered


class ReplyPassage(BaseModel):
    """A passage that an answer was read from: what found it, and what each feature adds to its score z."""

    document_id: str
    row_id: int
    title: str
    text: str
    sources: list[str]
    contributions: dict[str, float]


class Reply(BaseModel):
    """An answer with its passages, best first, and their scores.

    `unread` is the end of a question that is too long to be searched for as a whole.
    """

    question: str
    answer: str
    documents: list[ReplyPassage]
    scores: list[float]
    unread: str


def reply_of(answered: "Answered") -> Reply:
    """The reply for an answered question."""
    return Reply(
        question=answered.question,
        answer=answered.answer,
        documents=[
            ReplyPassage(
                document_id=p.document_id,
                row_id=p.row_id,
                title=p.title,
                text=p.text,
                sources=list(p.sources),
                contributions=dict(p.contributions),
            )
            for p in answered.passages
        ],
        scores=[p.score for p in answered.passages],
        unread=answered.unread,
    )
