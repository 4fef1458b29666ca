"""Print the resolved configuration, or the reference of all keys.

python -m infra.config_page [FILE] [--set KEY=VALUE …]     the tree, as TOML
python -m infra.config_page --reference                    a page of all keys: type, default, description
"""

import argparse
import inspect
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clara.config.flags import program, toml
from clara.config.load import load
from clara.config.tree import Config
from clara.errors import command_line


def _kind(annotation: Any) -> str:
    """A type as the page names it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{toml(choice)}`" for choice in arguments)
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"table of {_kind(arguments[0])} to {_kind(arguments[1])}"
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if arguments:
        return " or ".join(_kind(argument) for argument in arguments)
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    return f", {', '.join(found)}" if found else ""


def _is_section(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)


def sections(section: BaseModel, name: str = "") -> Iterator[str]:
    """A section's heading and table, then those of the sections in it."""
    fields = type(section).model_fields
    yield f"\n## {f'`[{name}]`' if name else 'The root'}\n\n{inspect.getdoc(type(section))}\n"
    rows = [
        (key, _kind(field.annotation) + _bounds(field), toml(getattr(section, key)), field.description or "")
        for key, field in fields.items()
        if not _is_section(field)
    ]
    if rows:
        yield "| key | type | default | description |\n|---|---|---|---|"
    for key, kind, default, description in rows:
        cells = (f"`{name}.{key}`" if name else f"`{key}`", kind, f"`{default}`", description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    for key, field in fields.items():
        if _is_section(field):
            yield from sections(getattr(section, key), f"{name}.{key}" if name else key)


def reference() -> str:
    """The reference page, as Markdown."""
    head = (
        "# Configuration\n\n"
        "One tree of settings for all commands. A TOML file holds what differs from the defaults (`--config FILE`), "
        "`--set KEY=VALUE` sets a\n"
        "key, and a command's flags are short names of keys. Defaults, then the file, "
        "then flags and `--set` in their order. An unknown key\n"
        "is an error; a key that a command does not use is refused with `--set` and reported of a file."
    )
    return "\n".join([head, *sections(Config())]) + "\n"


def as_toml(section: BaseModel, name: str = "") -> Iterator[str]:
    """The lines of a TOML file that resolves to a section."""
    below = []
    if name:
        yield f"\n[{name}]"
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            below.append((key, value))
        else:
            yield f"{key} = {toml(value)}"
    for key, value in below:
        yield from as_toml(value, f"{name}.{key}" if name else key)


def main(argv: Sequence[str]) -> int:
    """The command line."""
    called = program("infra.config_page")
    parser = argparse.ArgumentParser(
        prog=called,
        description=(__doc__ or "").replace("python -m infra.config_page", called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="TOML file; shipped ones are in infra/configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key; repeatable")
    parser.add_argument("--reference", action="store_true", help="print the reference page of all keys, as Markdown")
    options = parser.parse_args(argv)
    if options.reference:
        print(reference(), end="")
    else:
        print("\n".join(as_toml(load(options.file, options.set))))
    return 0


if __name__ == "__main__":
    command_line(main)
