"""Questions with more tokens than the query reasoner reads: what it does not read of them is the end, which asks."""

import logging
from collections.abc import Iterable

from clara.model.model import ClaraModel

logger = logging.getLogger(__name__)

_SHOWN_CHARACTERS = 80


def unread_part(model: ClaraModel, question: str) -> str:
    """The end of a question, beyond `model.max_question_tokens`; empty where all of it is read."""
    return str(model.tokenizer.decode(model.prompts.text_ids(question)[model.settings.max_question_tokens :]))


def warn_of_cuts(model: ClaraModel, questions: Iterable[str]) -> None:
    """Log how many questions are cut, and where the first one is."""
    cut = [(question, unread) for question in questions if (unread := unread_part(model, question))]
    if cut:
        question, unread = cut[0]
        logger.warning(
            "%d question(s) have more than the %d tokens that the CHECKPOINT reads of one (model.max_question_tokens), "
            "and are searched for without their ends; %r is cut before %r; shorten them, or train with a larger limit",
            len(cut),
            model.settings.max_question_tokens,
            question[:_SHOWN_CHARACTERS],
            unread[:_SHOWN_CHARACTERS],
        )
