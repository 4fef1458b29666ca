"""What every command that reads a corpus asks about its records, in the same words."""

import argparse

from clara.data.corpus import FIELDS, Fields
from clara.errors import InputError


def add_field_arguments(parse: argparse._ActionsContainer) -> None:
    """Add the names of a record's fields."""
    add = parse.add_argument
    add(
        "--id-field",
        default=FIELDS.id,
        help="field with the document's id; without it, the hash of its content (default: %(default)s)",
    )
    add(
        "--title-field",
        default=FIELDS.title,
        help="field with the title, which goes in front of the text (default: %(default)s)",
    )
    add("--text-field", default=FIELDS.text, help="field with the text (default: %(default)s)")


def given_fields(args: argparse.Namespace) -> Fields:
    """The fields that a command line names."""
    return Fields(args.id_field, args.title_field, args.text_field)


def refuse_fields(args: argparse.Namespace, reason: str) -> None:
    """Refuse names of fields where nothing would heed them.

    Raises:
        InputError: another than its standard name is given; the message ends with the reason.
    """
    for name, value in vars(given_fields(args)).items():
        if value != getattr(FIELDS, name):
            raise InputError(f"--{name}-field {value}: {reason}; leave it out")


def add_corpus_arguments(parse: argparse._ActionsContainer) -> None:
    """Add what a corpus job asks about the records that it reads, and which of them it drops."""
    add = parse.add_argument
    add(
        "--format",
        default="auto",
        help="of the input: jsonl, json (an array), parquet, text, mediawiki (a dump) (default: auto, by the file name)",
    )
    add_field_arguments(parse)
    add("--min-characters", type=int, default=0, help="drop documents with a shorter text (default: %(default)s)")
    add("--max-characters", type=int, default=0, help="drop documents with a longer text (default: 0, no bound)")
    add(
        "--language",
        action="extend",
        nargs="+",
        default=[],
        metavar="CODE",
        help="drop documents in other languages than these, as en de (default: none)",
    )
    add(
        "--max-symbol-ratio",
        type=float,
        default=1.0,
        help="drop documents with a larger share of characters that are no letters or digits (default: 1)",
    )
    add(
        "--near-duplicates",
        type=float,
        default=0.0,
        metavar="SIMILARITY",
        help="drop documents that are as like an earlier one as this, 0.8 say: estimated Jaccard similarity of five-word shingles; in scripts "
        "without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character counts as a word; texts without words only where they are equal "
        "(default: 0, off)",
    )
