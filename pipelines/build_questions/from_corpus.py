"""Questions from a corpus alone as question formats: bridge cloze, natural questions, or both.

See `pipelines.corpus.bridges` and `pipelines.corpus.natural`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clara.data.fields import FIELDS, Fields
from clara.data.questions import Question
from clara.data.records import Document
from clara.errors import InputError
from pipelines.build_questions.question_format import Built
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.bridges import CLOZE, ClozeSettings, cloze_questions
from pipelines.corpus.natural import NATURAL, natural_questions
from pipelines.corpus.shared_names import SHARED_NAME, shared_name_questions
from pipelines.corpus.whole import read_corpus

_Maker = Callable[[Sequence[Document], ClozeSettings], tuple[list[Question], dict[str, int]]]
_MAKERS: Mapping[str, _Maker] = {
    CLOZE: cloze_questions,
    NATURAL: natural_questions,
    SHARED_NAME: shared_name_questions,
}
_NOTHING = {
    CLOZE: "no article mentions another",
    NATURAL: "no article states a fact in a known form",
    SHARED_NAME: "no name is in 2 to --max-mentions articles",
}
_CLOZE_ALONE = ("max_mentions", "min_words", "max_words")


@dataclass(frozen=True)
class CorpusFormat:
    """Questions from the sentences of a corpus. See `QuestionFormat`.

    Attributes:
        name: that `--format` takes.
        kinds: of questions, in their order in the artefact.
    """

    name: str
    kinds: tuple[str, ...]
    brings_documents = False

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """See `QuestionFormat`.

        Raises:
            InputError: a value is out of its range, or is not for this format.
        """
        if options.qrels or options.document_ids != "given":
            raise InputError(
                f"--format {self.name} reads a corpus: --qrels and --document-ids are for others; leave them out"
            )
        fields, settings = given_fields(options), asdict(resolve_cloze(options))
        for name in () if CLOZE in self.kinds else _CLOZE_ALONE:
            if settings.pop(name) != getattr(ClozeSettings(), name):
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(options, name)}: --format {self.name} has no sentences with "
                    "a gap; leave it out"
                )
        if not settings.get("max_mentions", 1):
            del settings["max_mentions"]  # the recipe of before this setting
        return settings | ({"fields": asdict(fields)} if fields != FIELDS else {})

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """See `QuestionFormat`. Counts: mentions (or facts) = questions + merged + dropped, by reason."""
        fields = Fields(**settings.get("fields", asdict(FIELDS)))
        corpus = read_corpus(files, fields)
        chosen = ClozeSettings(**{name: value for name, value in settings.items() if name != "fields"})
        questions: list[Question] = []
        counts: dict[str, int] = {}
        kinds = (*self.kinds, SHARED_NAME) if chosen.max_mentions else self.kinds
        for kind in kinds:
            found, account = _MAKERS[kind](corpus, chosen)
            if not found:
                raise InputError(f"{', '.join(files)}: {_NOTHING[kind]} ({account}); give a larger corpus with titles")
            questions += found
            counts |= account if len(kinds) == 1 else {f"{kind}: {what}": n for what, n in account.items()}
        asked = {target for q in questions if q.split == "train" for target in q.positive_ids}
        counts["targets of training questions"] = len(asked)
        return Built(questions, corpus, counts)


def resolve_cloze(options: argparse.Namespace) -> ClozeSettings:
    """Settings of the command line.

    Raises:
        InputError: a value is out of its range.
    """
    for name, valid, expected in (
        ("max_per_target", options.max_per_target >= 1, "at least 1"),
        ("min_words", 1 <= options.min_words <= options.max_words, f"1 to --max-words ({options.max_words})"),
        ("held_out_share", 0 <= options.held_out_share < 1, "0 to under 1"),
        ("max_mentions", options.max_mentions != 1, "0, or at least 2"),
        ("pool_size", options.pool_size == 0 or options.pool_size >= 2, "0, or at least 2"),
    ):
        if not valid:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}; expected {expected}")
    if options.train_pools and not options.pool_size:
        raise InputError("--train-pools without --pool-size; say how many documents a pool holds, as in --pool-size 20")
    return ClozeSettings(**{name: getattr(options, name) for name in asdict(ClozeSettings())})
