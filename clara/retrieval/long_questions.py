"""Questions with more tokens than the query reasoner reads: what it does not read may be what they ask."""

import logging
from collections.abc import Iterable

from clara.model.model import ClaraModel

logger = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 80


def unread_part(model: ClaraModel, question: str) -> str:
    """What of a question is beyond `model.max_question_tokens`; empty where all of it is read."""
    limit = model.settings.max_question_tokens
    if len(question.encode()) <= limit:  # no token is less than a byte
        return ""
    ids = model.prompts.text_ids(question)
    keeps_end = model.settings.question_keeps == "end"
    return str(model.tokenizer.decode(ids[: max(0, len(ids) - limit)] if keeps_end else ids[limit:]))


def warn_of_cuts(model: ClaraModel, questions: Iterable[str]) -> None:
    """Log how many questions are cut, and where the first one is."""
    cut = [(question, unread) for question in questions if (unread := unread_part(model, question))]
    if cut:
        question, unread = cut[0]
        keeps_end = model.settings.question_keeps == "end"
        logger.warning(
            "%d question(s) have more than the %d tokens that the CHECKPOINT reads of one (model.max_question_tokens), "
            "and are searched for without their %s; %r is cut %s %r; shorten them, train with a larger limit, or keep "
            "the other end (training.set_score --question-keeps)",
            len(cut),
            model.settings.max_question_tokens,
            "beginnings" if keeps_end else "ends",
            question[:_SHOWN_CHARACTERS],
            "after" if keeps_end else "before",
            unread[-_SHOWN_CHARACTERS:] if keeps_end else unread[:_SHOWN_CHARACTERS],
        )
