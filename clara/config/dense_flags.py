"""Flags of an embedding model, for the commands that use one."""

import argparse
from typing import Any

from clara.config.flags import Command, add_setting
from clara.config.load import Override


class _DensePrompts(argparse.Action):
    """A flag with the two prompts of an embedding model."""

    def __call__(self, _: argparse.ArgumentParser, found: argparse.Namespace, value: Any, option: Any = None) -> None:
        """Record both prompts as overrides."""
        for name, text in zip(("question", "text"), value, strict=True):
            found.overrides.append(Override(f"retrieval.dense_{name}_prompt", text, option))


def add_dense_settings(parser: Command, model: str = "retrieval.dense_model") -> None:
    """Add the flags of an embedding model, and its other settings to what the command uses.

    Args:
        parser: the command.
        model: key of its folder or URL.
    """
    add_setting(parser, model, metavar="FOLDER_OR_URL")
    for name in ("dense_name", "dense_question_prompt", "dense_text_prompt"):
        add_setting(parser, f"retrieval.{name}", metavar="TEXT")
    parser.add_argument(
        "--dense-prompts",
        action=_DensePrompts,
        nargs=2,
        metavar=("QUESTION", "TEXT"),
        help='both prompts at once, as --dense-prompts "query: " "passage: "',
    )
    others = ("dense_size", "dense_key_variable", "dense_concurrency", "dense_seconds")
    parser.uses += [f"retrieval.{name}" for name in others]
