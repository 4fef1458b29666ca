"""Reads a configuration from a TOML file and overrides."""

import ast
import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from clara.config.section import near_entries
from clara.config.tree import Config
from clara.errors import InputError


def fields(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key below a section with its field, sections included."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def field_of(key: str) -> FieldInfo:
    """The field of a dotted key."""
    return dict(fields())[key]


@dataclass(frozen=True)
class Override:
    """What a command line sets: a key, its value, and the option that did it (`--set`, or the key's flag)."""

    key: str
    value: Any
    option: str = "--set"

    @property
    def name(self) -> str:
        """What was typed, without its value."""
        return f"--set {self.key}" if self.option == "--set" else self.option

    @classmethod
    def parse(cls, text: str) -> "Override":
        """`key=value`, the value as TOML, else as a Python literal, else as the text itself.

        Raises:
            InputError: no `=`.
        """
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected key=value, as in --set joint.steps=100")
        return cls(name.strip(), _value(value.strip()))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _merge(tree: dict[str, Any], override: Override) -> None:
    path = override.key.split(".")
    for depth, part in enumerate(path[:-1], 1):
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            above = ".".join(path[:depth])
            raise InputError(
                f"--set {override.key}: {above} is {tree!r}, a value with no keys below it; correct the key"
            )
    tree[path[-1]] = override.value


def explain(error: ValidationError, source: str, overrides: Sequence[Override] = ()) -> InputError:
    """Pydantic's findings as one error: each with key, value and constraint, and similar keys for an unknown one."""
    known = [key for key, _ in fields()]
    flags = {o.key: o.option for o in overrides if o.option != "--set"}
    lines = []
    for finding in error.errors():
        key = ".".join(str(p) for p in finding["loc"])
        if finding["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or difflib.get_close_matches(
                key.split(".")[-1], known, n=3, cutoff=0.4
            )
            lines.append(f"{key}: unknown key" + (f"; near ones: {', '.join(near)}" if near else ""))
        elif finding["loc"][-1:] == ("[key]",):  # of a table whose keys are fixed
            near_ones = near_entries(str(finding["loc"][-2]), finding["ctx"])
            lines.append(f"{key.removesuffix('.[key]')}: unknown key; near ones: {near_ones}")
        else:
            value, message = finding.get("input"), _message(finding)
            flag = flags.get(key) or flags.get(key.rpartition(".")[0])  # of an entry of a list, the list's
            if flag:
                lines.append(_of_flag(flag, finding))
            else:
                shown = "" if isinstance(value, dict) or not key else f" is {value!r}:"
                lines.append(f"{key}{shown} {message}")
    return InputError(f"{source}: " + "; ".join(lines) if source else "; ".join(lines))


def _of_flag(flag: str, finding: ErrorDetails) -> str:
    """A finding about a flag's value: the flag, the value and what was expected."""
    value, limits = finding["input"], finding.get("ctx", {})
    if finding["type"] == "literal_error":
        choices = limits["expected"].replace(" or ", ", ").replace("'", "")
        return f"{flag}: {value!r} is not known; choose from {choices}"
    words = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
    expected = next((text.format(_number(limits[name])) for name, text in words.items() if name in limits), None)
    return f"{flag} is {value}; " + (f"expected {expected}" if expected else _message(finding))


def _message(finding: ErrorDetails) -> str:
    return finding["msg"].removeprefix("Value error, ")


def _number(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)


def read_file(path: str) -> dict[str, Any]:
    """A configuration file's tables, not yet checked.

    Raises:
        InputError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such configuration file; shipped ones are in infra/configs/") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a TOML file; shipped ones are in infra/configs/"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error


def resolve(in_file: Mapping[str, Any], overrides: Sequence[Override], path: str | None = None) -> Config:
    """The tree: defaults, then a file's settings, then overrides in their order.

    Args:
        in_file: as returned by `read_file`.
        overrides: of the command line.
        path: of the file, for errors.

    Raises:
        InputError: a key is unknown, or a value breaks its constraint.
    """
    tree: dict[str, Any] = _copied(in_file)
    for override in overrides:
        _merge(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, path or "", overrides) from error


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in tree.items()}


def load(path: str | None, sets: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `a.b=c` overrides.

    Raises:
        InputError: see `read_file`, `Override.parse` and `resolve`.
    """
    return resolve(read_file(path) if path else {}, [Override.parse(text) for text in sets], path)


def require(config: Config, *names: str) -> None:
    """Refuse a run whose paths are not set.

    Raises:
        InputError: one of the named root keys is empty.
    """
    missing = [name for name in names if not getattr(config, name)]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        raise InputError(f"{', '.join(missing)}: empty; set {them} in the file or with --set {missing[0]}=PATH")
