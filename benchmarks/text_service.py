"""The HTTP service over raw text: the same search and passages, read by the plain LM in place of their memory.

python -m benchmarks.text_service …, with the flags of `clara serve`. It is what benchmarks/serving.py compares with.
"""

import functools
from collections.abc import Sequence
from typing import Any

from clara.errors import command_line
from clara.model.decoding import Generation, RunningBatch
from clara.model.prompts import Prompt
from clara.retrieval.filter import Filter
from clara.retrieval.fused import Hit
from clara.retrieval.retriever import Retriever
from training.evaluation.readers import Reading, TextReader


class Asked(list[Hit]):
    """Hits that know their question."""

    question = ""


class TextRetriever(Retriever):
    """Answers with the passages' text in the prompt, as the evaluation's reader of raw text does."""

    def hits(self, questions: Sequence[str], k: int, only: Filter | None = None) -> list[list[Hit]]:
        found: list[list[Hit]] = []
        for question, hits in zip(questions, super().hits(questions, k, only), strict=True):
            asked = Asked(hits)
            asked.question = question
            found.append(asked)
        return found

    def generation(self, prompt: Prompt, hits: Sequence[Hit], max_new_tokens: int) -> Generation:
        assert isinstance(hits, Asked)
        reader = TextReader(self)
        reading = Reading(hits.question, "", tuple(hit.row_id for hit in hits))
        return Generation(reader.prompt(reading, None), reader.memory(reading), max_new_tokens)


def main(argv: list[str]) -> int:
    """The command line."""
    import clara.serving.engine
    import clara.system
    from clara.serving.command import main as serve

    changed: dict[str, Any] = {"RunningBatch": functools.partial(RunningBatch, role=None)}
    vars(clara.serving.engine).update(changed)
    vars(clara.system).update(Retriever=TextRetriever)
    return serve(argv)


if __name__ == "__main__":
    command_line(main)
