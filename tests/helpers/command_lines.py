"""Command lines of texts and manifests, sent through their programs' own parsers without running."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clara.config.flags import Command
from clara.config.load import load

ROOT = Path(__file__).parents[2]
SUBMITTED = {
    "build_memory": ["python", "-m", "pipelines.build_memory"],
    "score_utilities": ["python", "-m", "pipelines.score_utilities"],
    "joint": ["python", "training/joint.py"],
    "pretrain": ["python", "training/pretrain.py"],
}
"""Commands that a submit command ends with, by their names there."""


class ParsedError(Exception):
    """The command line was accepted; carries what it was parsed into."""

    def __init__(self, options: argparse.Namespace, rest: list[str]) -> None:
        super().__init__()
        self.options, self.rest = options, rest


def commands_in(text: str) -> Iterator[list[str]]:
    """The project's own commands in the code blocks of a page, as words: `python …`, `make …`, `clara …`."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if re.match(r"(python|make|clara|ray|export) ", line) else []
            while words:
                end = min((words.index(mark) for mark in ("&&", ";", "|") if mark in words), default=len(words))
                command, words = words[:end], words[end + 1 :]
                if command[:3] == ["ray", "job", "submit"]:
                    command = command[command.index("--") + 1 :]
                if command and command[0] in ("python", "make", "clara"):
                    yield command


def program(words: list[str]) -> tuple[Callable[[list[str]], int], list[str]]:
    """The function that reads a command's arguments, and the arguments."""
    if words[0] == "clara":
        module, arguments = "infra.cli", words[1:]
    elif words[1] == "-m":
        module, arguments = words[2], words[3:]
    else:
        module, arguments = words[1].removesuffix(".py").replace("/", "."), words[2:]
    if (ROOT / module.replace(".", "/") / "command.py").is_file():
        module += ".command"
    return importlib.import_module(module).main, arguments


def stopping(parse: Callable[..., Any], depth: list[int]) -> Callable[..., Any]:
    """The parsing method, which ends the command once the outermost parser is done."""

    def wrapped(*args: Any, **options: Any) -> Any:
        depth[0] += 1
        try:
            found = parse(*args, **options)
        finally:
            depth[0] -= 1
        if depth[0]:
            return found
        raise ParsedError(*(found if isinstance(found, tuple) else (found, [])))

    return wrapped


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a command through its own parser, and the settings of `--config` and `--set` through the configuration's.

    Raises:
        SystemExit: the parser refuses it.
        InputError: a setting is refused.
    """
    main, arguments = program(words)
    with monkeypatch.context() as patch:
        depth = [0]
        for parser in (argparse.ArgumentParser, Command):
            for name in ("parse_args", "parse_known_args"):
                patch.setattr(parser, name, stopping(getattr(parser, name), depth))
        patch.setattr(sys, "argv", list(words[:1]))
        try:
            assert main(arguments) == 0
            assert arguments == ["--help"], f"{words} ran without parsing its arguments"
            return
        except ParsedError as parsed:
            options, rest = parsed.options, parsed.rest
    assert not rest or any(word.startswith("--runner") for word in arguments), f"unknown: {rest}"
    if isinstance(getattr(options, "set", None), list):
        load(getattr(options, "config", None), options.set)
    for job, command in SUBMITTED.items():
        if "submit" in " ".join(words[:3]) and job in words:
            parse([*command, *words[words.index(job) + 1 :]], monkeypatch)
