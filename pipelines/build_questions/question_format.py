"""The interface of a question format."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clara.data.questions import Question
from clara.data.records import Document


@dataclass(frozen=True)
class Built:
    """What a format makes of its input.

    Attributes:
        questions: at least one.
        documents: that the questions are about; empty where the format has none.
        counts: for the manifest.
    """

    questions: Sequence[Question]
    documents: Sequence[Document]
    counts: Mapping[str, int]


class QuestionFormat(Protocol):
    """How `build_questions` makes questions from input files; `formats.FORMATS` lists all of them."""

    @property
    def brings_documents(self) -> bool:
        """True if the input holds documents that are not a corpus file yet: `--corpus-output` can write them."""
        ...

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """The settings of a command line that determine the questions; a part of the recipe.

        Raises:
            InputError: a value is out of its range, or a flag does not apply to this format.
        """
        ...

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """Questions of files, by settings as returned by `settings`.

        Raises:
            InputError: a row is bad, or no question is left.
        """
        ...
