"""Bridge cloze questions from a corpus, see `pipelines.corpus.bridges`, as a question format."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from clara.data.fields import FIELDS, Fields
from clara.errors import InputError
from pipelines.build_questions.question_format import Built
from pipelines.corpus.arguments import given_fields
from pipelines.corpus.bridges import ClozeSettings, cloze_questions
from pipelines.corpus.whole import read_corpus


class ClozeFormat:
    """Questions from the sentences of a corpus. See `QuestionFormat`."""

    brings_documents = False

    def settings(self, options: argparse.Namespace) -> dict[str, Any]:
        """See `QuestionFormat`.

        Raises:
            InputError: a value is out of its range, or is not for this format.
        """
        if options.qrels or options.document_ids != "given":
            raise InputError("--format cloze reads a corpus: --qrels and --document-ids are for others; leave them out")
        fields = given_fields(options)
        return asdict(resolve_cloze(options)) | ({"fields": asdict(fields)} if fields != FIELDS else {})

    def build(self, files: Sequence[str], settings: Mapping[str, Any]) -> Built:
        """See `QuestionFormat`. Counts: mentions = questions + dropped, by reason."""
        fields = Fields(**settings.get("fields", asdict(FIELDS)))
        corpus = read_corpus(files, fields)
        questions, counts = cloze_questions(
            corpus, ClozeSettings(**{name: value for name, value in settings.items() if name != "fields"})
        )
        if not questions:
            raise InputError(
                f"{', '.join(files)}: no article mentions another ({counts}); give a larger corpus with titles"
            )
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
        ("pool_size", options.pool_size == 0 or options.pool_size >= 2, "0, or at least 2"),
    ):
        if not valid:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name)}; expected {expected}")
    if options.train_pools and not options.pool_size:
        raise InputError("--train-pools without --pool-size; say how many documents a pool holds, as in --pool-size 20")
    return ClozeSettings(**{name: getattr(options, name) for name in asdict(ClozeSettings())})
