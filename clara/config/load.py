"""Reads a configuration from a TOML file and overrides."""

import ast
import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from clara.config.section import near_entries
from clara.config.tree import Config
from clara.errors import InputError


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree below a section."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def _value(text: str) -> Any:
    """A `--set` value: TOML where it is TOML, else a Python literal, else the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _merge(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for depth, part in enumerate(path[:-1], 1):
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"--set {'.'.join(path)}: {'.'.join(path[:depth])} is {tree!r}, a value with no keys below it; correct the key"
            )
    tree[path[-1]] = value


def explain(error: ValidationError, source: str) -> InputError:
    """Pydantic's findings as one error: each with its key, value and constraint, and the near ones of an unknown key."""
    known = list(keys(Config))
    lines = []
    for finding in error.errors():
        key = ".".join(str(p) for p in finding["loc"])
        if finding["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or difflib.get_close_matches(
                key.split(".")[-1], known, n=3, cutoff=0.4
            )
            lines.append(f"{key}: unknown key" + (f"; near ones: {', '.join(near)}" if near else ""))
        elif finding["loc"][-1:] == ("[key]",):  # of a table whose keys are fixed
            lines.append(
                f"{key.removesuffix('.[key]')}: unknown key; near ones: {near_entries(str(finding['loc'][-2]), finding['ctx'])}"
            )
        else:
            value = finding.get("input")
            shown = "" if isinstance(value, dict) or not key else f" is {value!r}:"
            lines.append(f"{key}{shown} {finding['msg'].removeprefix('Value error, ')}")
    return InputError(f"{source}: " + "; ".join(lines))


def load(path: str | None, sets: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `a.b=c` overrides.

    Raises:
        InputError: the file is missing or not TOML, an override is not `key=value`, a key is unknown, or a value breaks
            its constraint.
    """
    tree: dict[str, Any] = {}
    if path:
        try:
            tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such configuration file; shipped ones are in infra/configs/") from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); give a TOML file; shipped ones are in infra/configs/"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not TOML: {error}") from error
    for override in sets:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: expected key=value, as in --set joint.steps=100")
        _merge(tree, name.strip().split("."), _value(text.strip()))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, path or "--set") from error


def require(config: Config, *names: str) -> None:
    """Refuse a run whose paths are not given.

    Raises:
        InputError: one of the named root keys is empty.
    """
    missing = [name for name in names if not getattr(config, name)]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: empty; set {'it' if len(missing) == 1 else 'them'} in the file or with --set {missing[0]}=PATH"
        )
