"""The HTTP service over raw text: the same search and passages, read by the plain LM in place of their memory.

python -m benchmarks.text_service …, with the flags of `clara serve`. It is what benchmarks/serving.py compares with.
"""

import functools
from typing import Any

from clara.errors import command_line
from clara.model.decoding import RunningBatch
from clara.retrieval.retriever import Retriever


class TextRetriever(Retriever):
    """Answers with the passages' text in the prompt, whatever the CHECKPOINT's generator reads."""

    @property
    def reads_text(self) -> bool:
        return True


def main(argv: list[str]) -> int:
    """The command line."""
    import clara.serving.engine
    import clara.system
    from clara.serving.command import main as serve

    plain: dict[str, Any] = {"RunningBatch": functools.partial(RunningBatch, role=None)}
    vars(clara.serving.engine).update(plain)
    vars(clara.system).update(Retriever=TextRetriever)
    return serve(argv)


if __name__ == "__main__":
    command_line(main)
