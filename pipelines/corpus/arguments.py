"""Arguments about the records of a corpus, shared by all commands that read one."""

import argparse

from clara.config.flags import add_setting
from clara.data.fields import FIELDS, Fields
from clara.errors import InputError


def add_field_arguments(parse: argparse._ActionsContainer) -> None:
    """Add the names of a record's fields."""
    for name in ("id_field", "title_field", "text_field"):
        add_setting(parse, f"records.{name}")


def given_fields(args: argparse.Namespace) -> Fields:
    """The fields that a command line names."""
    return Fields(args.id_field, args.title_field, args.text_field)


def refuse_fields(args: argparse.Namespace, reason: str) -> None:
    """Refuse field names where they have no effect.

    Raises:
        InputError: a name differs from its default; the message ends with `reason`.
    """
    for name, value in vars(given_fields(args)).items():
        if value != getattr(FIELDS, name):
            raise InputError(f"--{name}-field {value}: {reason}; leave it out")


def add_input_argument(parse: argparse.ArgumentParser) -> None:
    """Add the files of a corpus job."""
    parse.add_argument(
        "--input",
        action="extend",
        nargs="+",
        required=True,
        metavar="GLOB",
        help="corpus files: paths and globs; may be repeated",
    )


def add_corpus_arguments(parse: argparse._ActionsContainer) -> None:
    """Add the arguments for format, fields and filters of the records that a corpus job reads."""
    add_setting(parse, "records.format")
    add_field_arguments(parse)
    add_setting(parse, "records.min_characters")
    add_setting(parse, "records.max_characters")
    add_setting(parse, "records.languages", "--language", nargs="+", metavar="CODE")
    add_setting(parse, "records.max_symbol_ratio")
    add_setting(parse, "records.near_duplicates", metavar="SIMILARITY")
    add_setting(parse, "records.limit")
