"""Seconds of a whole answer: questions one at a time, as `clara.ask` answers them."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clara.config.evaluation import ANSWER_SECONDS
from clara.data.questions import Question
from clara.progress import Progress
from training.evaluation.measures import Row
from training.evaluation.systems import Settings

if TYPE_CHECKING:
    from clara.retrieval.retriever import Retriever


def time_answers(
    name: str, retriever: "Retriever", questions: Sequence[Question], settings: Settings, rows: Sequence[Row]
) -> None:
    """Add `answer.seconds` to a system's rows of these questions.

    One answer before them is not counted: it maps files and compiles.

    Args:
        name: of the system.
        retriever: the open system.
        questions: to be answered.
        settings: K, and the longest answer.
        rows: of the evaluation.

    Raises:
        InputError: see `Retriever.check`.
    """

    def answer(question: Question) -> float:
        began = time.perf_counter()
        retriever.ask([question.question], num_selected=settings.num_selected, max_new_tokens=settings.max_new_tokens)
        return time.perf_counter() - began

    own = {row["question_id"]: row for row in rows if row["system"] == name}
    with Progress(len(questions), f"{name}: seconds of an answer", " questions", shown=bool(questions)) as bar:
        for number, question in enumerate(questions):
            if not number:
                answer(question)
            own[question.question_id][ANSWER_SECONDS] = answer(question)
            bar.update(1)
