"""Check a file for `serve deploy` without Ray and without a cluster.

    python -m infra.ray.serve_config infra/ray/serve.yaml

Checks what the applications of `infra.ray.serving` are given: flags, paths, and whether their replicas take as many
requests as the service does. Names and types of all other fields are checked by `serve deploy`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clara.config.flags import plain_parser
from clara.config.serving import Serving
from clara.errors import InputError, command_line
from clara.serving.command import parser
from clara.storage.paths import is_registered, is_url

IMPORT_PATH, DEPLOYMENT = "infra.ray.serving:application", "Service"
SEARCH = tuple(f"retrieval.search_{name}" for name in ("shards", "seconds", "restarts", "cpus"))
"""Settings of search servers, which `clara serve` has none of."""
_NOT_HERE = {"host": "http_options", "port": "http_options", "dry-run": "this command"}
_PATHS = ("checkpoint", "memory", "index", "backbone", "evaluation")


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Flags of `clara serve`, from a mapping of their names to values: `{"max-running": 4, "follow": True}`.

    Raises:
        InputError: a flag that is set elsewhere, a value that no flag has, or a path that means nothing to a replica.
    """
    flags = []
    for given, value in arguments.items():
        name = given.replace("_", "-")
        if name in _NOT_HERE:
            raise InputError(f"args: {given} is set by {_NOT_HERE[name]}; remove it here")
        if not isinstance(value, str | int | float) and not (name == "set" and isinstance(value, list)):
            raise InputError(f"args: {given} is {value!r}; expected a text, a number, true, or for set a list of them")
        if name in _PATHS and not (is_url(str(value)) or is_registered(str(value)) or Path(str(value)).is_absolute()):
            raise InputError(f"args: {given} is {value!r}; a replica runs in another directory, name an absolute path")
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            flags += [f"--{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return flags


def settings_of(flags: Sequence[str]) -> Serving:
    """Limits and defaults by flags; those of a registered model are not looked up.

    Raises:
        InputError: `clara serve` has no such flag, or one that it needs is missing.
    """
    known = [word for word in flags if not word.startswith("--model=")]
    if len(known) < len(flags):
        known = ["--checkpoint=registered", "--memory=registered", *known]
    try:
        options = parser(SEARCH).parse_args(known)
    except SystemExit as error:
        raise InputError(f"args: {' '.join(flags)} are no flags of clara serve; see the message above") from error
    if options.config.retrieval.search_shards and not options.index and len(known) == len(flags):
        raise InputError("args: retrieval.search_shards needs an index; name one, or leave it out")
    settings: Serving = options.config.serving
    return settings


def check(file: Path) -> list[str]:
    """A line for each application of the service in a file.

    Raises:
        InputError: it cannot be read, has none, or one is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: {error}; expected a file for serve deploy") from error
    applications = content.get("applications") if isinstance(content, dict) else None
    ours = [each for each in applications or [] if each.get("import_path") == IMPORT_PATH]
    if not ours:
        raise InputError(f"{file}: no application has import_path: {IMPORT_PATH}; add one")
    try:
        return [_check_application(application) for application in ours]
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _check_application(application: Mapping[str, Any]) -> str:
    settings = settings_of(flags_of(application.get("args") or {}))
    takes = settings.max_running + settings.max_waiting
    own: Mapping[str, Any] = next(
        (each for each in application.get("deployments") or [] if each.get("name") == DEPLOYMENT), {}
    )
    if own.get("max_ongoing_requests") != takes:
        raise InputError(
            f"{DEPLOYMENT}: max_ongoing_requests is {own.get('max_ongoing_requests')}; expected serving.max_running + "
            f"serving.max_waiting = {takes}: with fewer it is never full, with more it refuses what another would take"
        )
    scaling = own.get("autoscaling_config") or {}
    if scaling and not 0 < scaling.get("target_ongoing_requests", 0) <= takes:
        raise InputError(
            f"{DEPLOYMENT}: target_ongoing_requests is {scaling.get('target_ongoing_requests')}; expected up to "
            f"max_ongoing_requests = {takes}, as no replica has more"
        )
    if own.get("graceful_shutdown_timeout_s", 0) < settings.request_seconds:
        raise InputError(
            f"{DEPLOYMENT}: graceful_shutdown_timeout_s is {own.get('graceful_shutdown_timeout_s')}; expected at least "
            f"serving.request_seconds = {settings.request_seconds:g}, or answers that run are lost"
        )
    replicas = f"{scaling['min_replicas']} to {scaling['max_replicas']}" if scaling else own.get("num_replicas", 1)
    return f"{application.get('name', 'default')}: {replicas} replicas, {takes} requests in each"


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("infra.ray.serve_config", __doc__)
    parser.add_argument("file", nargs="+", type=Path, help="files for serve deploy")
    for file in parser.parse_args(argv).file:
        print("\n".join(check(file)))
    return 0


if __name__ == "__main__":
    command_line(main)
