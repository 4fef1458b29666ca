"""Command lines over the configuration tree: `--first-level 50` is short for `--set retrieval.first_level=50`.

A flag takes its type, choices, default and help text from the key's field, so that each is written once. Every command
also takes `--config FILE` and `--set key=value`. Precedence: defaults, then the file, then flags and `--set` in their
order.
"""

import argparse
import logging
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic.fields import FieldInfo

from clara.config.load import Override, field_of, read_file, resolve
from clara.config.tree import READ_BY
from clara.errors import InputError

_METAVARS = {int: "N", float: "X"}
_log = logging.getLogger(__name__)


def program(module: str) -> str:
    """How the user called a command: `clara ask`, `python -m clara.ask` or `python FILE.py`."""
    called = sys.argv[0] if sys.argv else ""
    return called if called.startswith("clara ") else f"python {module if module.endswith('.py') else f'-m {module}'}"


def plain_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a command without settings of the tree; `doc` is its module's docstring."""
    return argparse.ArgumentParser(program(module), None, doc, formatter_class=argparse.RawDescriptionHelpFormatter)


class Setting(argparse.Action):
    """A flag that sets a key of the tree."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, *, key: str, adds: bool, optional: bool, **options: Any
    ) -> None:
        super().__init__(option_strings, dest, **options)
        self.key, self.optional, self._adds = key, optional, adds

    def __call__(self, _: argparse.ArgumentParser, found: argparse.Namespace, value: Any, option: Any = None) -> None:
        """Record the value as an override; a flag that adds appends it to its earlier values."""
        if self.nargs == 0:
            value = self.const
        elif self._adds:
            earlier = [o.value for o in found.overrides if (o.key, o.option) == (self.key, option)][-1:]
            value = [*(earlier[0] if earlier else ()), *(value if isinstance(value, list) else [value])]
        found.overrides.append(Override(self.key, value, option))


class Command(argparse.ArgumentParser):
    """The parser of a command whose settings are keys of the tree.

    `parse_args` returns a namespace with a value for each flag, wherever that was set, and with

    * `config`: the whole resolved tree,
    * `config_file`: the file of `--config`,
    * `overrides`: what flags and `--set` set, in their order.
    """

    def __init__(self, module: str, doc: str | None, *, uses: Sequence[str] = (), config: str | None = None) -> None:
        """A parser without settings; `add_setting` adds them.

        Args:
            module: module of the command, or its file if it is run as a file.
            doc: description; the module's docstring.
            uses: keys and sections that the command uses, in addition to those of its flags.
            config: default of `--config`.
        """
        direct = f"python {module}" if module.endswith(".py") else f"python -m {module}"
        super().__init__(
            prog=program(module),
            description=(doc or "").replace(direct, program(module)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.uses = list(uses)
        group = self.add_argument_group("configuration")
        text = f" (default: {config})" if config else ""
        group.add_argument(
            "--config",
            dest="config_file",
            default=config,
            metavar="FILE",
            help=f"TOML file; shipped ones are in infra/configs/{text}",
        )
        group.add_argument(
            "--set",
            action=_Set,
            metavar="KEY=VALUE",
            help="set any key that this command uses; repeatable (clara config --reference lists all keys)",
        )

    @property
    def _settings(self) -> list[Setting]:
        return [action for action in self._actions if isinstance(action, Setting)]

    @property
    def used(self) -> set[str]:
        """Keys and sections that the command uses."""
        return {*self.uses, *(action.key for action in self._settings)}

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and resolve the configuration.

        Raises:
            InputError: see `clara.config.load.resolve`; or `--set` names a key that the command does not use.
        """
        found = namespace or argparse.Namespace()
        found.overrides = []
        settings = self._settings
        required = [action for action in settings if action.required]
        ahead = self._ahead(args)
        in_file = read_file(ahead.config) if ahead.config else {}
        for action in required:
            action.required = not (
                touches(action.key, set(_leaves(in_file)))
                or any(o.partition("=")[0].strip() == action.key for o in ahead.set)
            )
        _, rest = super().parse_known_args(args, found)
        found.config = resolve(in_file, found.overrides, ahead.config)
        self._check_used(in_file, found.overrides, self.used)
        given = {*_leaves(in_file), *(override.key for override in found.overrides)}
        for action in settings:
            value = None if action.optional and not touches(action.key, given) else _value(found.config, action.key)
            setattr(found, action.dest, list(value) if isinstance(value, tuple) else value)
        missing = [action.option_strings[0] for action in required if not _value(found.config, action.key)]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return found, rest

    def _ahead(self, args: Sequence[str] | None) -> argparse.Namespace:
        """`--config` and `--set`, parsed first: they decide which flags are still required."""
        parser = argparse.ArgumentParser(self.prog, self.format_usage(), add_help=False, allow_abbrev=False)
        parser.add_argument("--config", default=self.get_default("config_file"))
        parser.add_argument("--set", action="append", default=[])
        return parser.parse_known_args(args)[0]

    def _check_used(self, in_file: Mapping[str, Any], overrides: Sequence[Override], used: set[str]) -> None:
        for override in overrides:
            if not touches(override.key, used):
                readers = ", ".join(f"clara {name}" for name in READ_BY.get(override.key.partition(".")[0], ()))
                what = f"this section is read by {readers}" if readers else f"it uses {', '.join(sorted(used))}"
                raise InputError(f"--set {override.key}: {self.prog} does not use this key; leave it out; {what}")
        unused = sorted({_widest(key, used) for key in _leaves(in_file) if not touches(key, used)})
        if unused:
            _log.info("%s does not use these settings of the file: %s", self.prog, ", ".join(unused))


class _Set(argparse.Action):
    def __call__(self, _: argparse.ArgumentParser, found: argparse.Namespace, value: Any, __: Any = None) -> None:
        found.overrides.append(Override.parse(value))


def add_setting(
    parser: argparse._ActionsContainer,
    key: str,
    flag: str = "",
    *,
    metavar: str | None = None,
    required: bool = False,
    adds: bool = False,
    nargs: str | None = None,
    optional: bool = False,
    note: str = "",
) -> None:
    """Add a flag that sets a key.

    Args:
        parser: command, or group of its arguments.
        key: dotted key of the tree.
        flag: such as `--first-level`; empty: the key's last part. The flag of a boolean sets the opposite of its
            default.
        metavar: name of the value in the help.
        required: the key must be set, by flag, `--set` or file.
        adds: the flag may be repeated, each time with one element of a list. Otherwise a list is comma-separated.
        nargs: `+`: the flag takes several elements of a list, as separate words.
        optional: the namespace has None if the key is not set, and the command derives a value.
        note: what this command does if the key is not set, if that is not the key's default.
    """
    field = field_of(key)
    flag = flag or f"--{key.rpartition('.')[2].replace('_', '-')}"
    options: dict[str, Any] = {"key": key, "adds": adds or bool(nargs), "optional": optional, "required": required}
    default = field.get_default(call_default_factory=True)
    text = f"{field.description}; {note}" if note else str(field.description)
    text += f" [{key} = {toml(default)}]" if default and not note else f" [{key}]"
    if field.annotation is bool:
        options |= {"nargs": 0, "const": not field.default}
        text = f"switch off: {text}" if field.default else text
    else:
        kind, choices, many = _kind(field)
        options |= {"type": _words(kind) if many and not options["adds"] else kind, "nargs": nargs}
        options["metavar"] = metavar or (None if choices and not many else _METAVARS.get(kind))
        if choices and not many:
            options["choices"] = choices
    dest = re.sub("^--(no-|without-)?", "", flag).replace("-", "_")  # --no-verify sets `verify`
    default = None if required else list(default) if isinstance(default, tuple) else default
    parser.add_argument(flag, dest=dest, action=Setting, default=default, help=text.replace("%", "%%"), **options)


def _kind(field: FieldInfo) -> tuple[type, tuple[Any, ...] | None, bool]:
    """Type of a field's value (of its elements, for a list), its choices, and whether it is a list."""
    annotation: Any = field.annotation
    many = typing.get_origin(annotation) is tuple
    if many:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return type(choices[0]), choices, many
    return annotation, None, many


def _words(kind: type) -> Any:
    def words(text: str) -> list[Any]:
        return [kind(word.strip()) for word in text.split(",") if word.strip()]

    words.__name__ = f"comma-separated {kind.__name__}"  # argparse names it in its errors
    return words


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(v) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k} = {toml(v)}' for k, v in value.items())}}}"
    return str(value)


def as_sets(overrides: Iterable[Override]) -> list[str]:
    """Overrides as another command's `--set` takes them."""
    return [f"{override.key}={toml(override.value)}" for override in overrides]


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def touches(key: str, used: set[str]) -> bool:
    """Whether a key is one of those, is above one, or below one."""
    return any(f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.") for name in used)


def _widest(key: str, used: set[str]) -> str:
    """The section of a key, where none of that is used; else the key."""
    section = key.partition(".")[0]
    return key if touches(section, used) else section
