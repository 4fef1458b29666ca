"""Held-out questions of the demo: those that are measured, and those that it shows."""

from clara.data.questions import Question, drawn, read_questions
from clara.errors import InputError

SEED = 0
MEASURED, SHOWN = 50, 3
KNOWN = "Who wrote Don Quixote?"  # shown where the corpus has its article, held out or not


def measured_questions(directory: str) -> list[Question]:
    """At most 50 held-out questions, drawn by a seed.

    Raises:
        InputError: none of them is held out.
    """
    return drawn(read_questions(directory, "unseen"), MEASURED, SEED)


def shown_questions(directory: str) -> list[str]:
    """Three of the measured questions, `KNOWN` in the place of one; none before the artefact is there."""
    try:
        known = [q.question for q in read_questions(directory) if q.question == KNOWN]
        others = [q.question for q in measured_questions(directory) if q.question != KNOWN]
    except InputError:
        return []
    return [*known, *others][:SHOWN]
