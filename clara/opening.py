"""The system that a command's flags name: which flags there are, and how it is opened."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.storage.paths import Name, require_resolved

if TYPE_CHECKING:
    from clara.index.search import OpenIndex
    from clara.system import System

Resolve = Callable[[str, str], str]
"""The path or URL of a CHECKPOINT, from its name and the URI of the MLflow store."""


def as_it_is(checkpoint: str, _: str) -> str:
    """A path or URL.

    Raises:
        InputError: the name of a registered model; this package does not use MLflow.
    """
    require_resolved(checkpoint)
    return checkpoint


def add_system_settings(parser: Command) -> None:
    """Add the flags that name a system and say how it searches."""
    add_setting(parser, "checkpoint", metavar="DIR", required=True)
    add_setting(parser, "memory", metavar="DIR", required=True)
    add_setting(parser, "index", metavar="DIR")
    add_setting(parser, "backbone.path", "--backbone", metavar="DIR")
    for name, metavar in (("first_level", "L"), ("candidates", "N"), ("exact_rows", "N")):
        add_setting(parser, f"retrieval.{name}", metavar=metavar)
    add_dense_settings(parser)
    add_setting(parser, "device")
    add_setting(parser, "serving.verify")
    add_setting(parser, "tracking.uri", "--tracking-uri", metavar="URI")


def open_system(
    options: argparse.Namespace,
    checkpoint: Name,
    memory: Name | None = None,
    index: Name | None = None,
    open_index: "OpenIndex | None" = None,
) -> "System":
    """Open what the flags of `add_system_settings` name.

    Args:
        options: parsed flags.
        checkpoint: path or URL of the CHECKPOINT; that of the flags, resolved.
        memory: MEMORY; None: that of the flags.
        index: INDEX, empty: none; None: that of the flags.
        open_index: see `Retriever.open`.

    Raises:
        InputError: see `clara.open`.
    """
    from clara.system import System

    return System.open(
        checkpoint,
        options.memory if memory is None else memory,
        (options.index if index is None else index) or None,
        backbone=options.backbone,
        device=options.device,
        retrieval=options.config.retrieval,
        verify=options.verify,
        open_index=open_index,
    )
