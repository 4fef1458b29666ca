"""A registered model version as flags of `clara serve`: where its parts are, and how it answers."""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from clara.errors import InputError
from clara.storage.paths import is_registered
from training.evaluation.files import REPORT
from training.registry.description import described, with_runs
from training.registry.resolve import local_checkpoint, name_of
from training.registry.store import answers, open_store, versions_of


def with_registered(argv: Sequence[str]) -> list[str]:
    """The arguments of a command with `--model models:/…` replaced by the flags of that version.

    Flags that are given beside it take precedence, as they come later.

    Raises:
        InputError: see `flags_of`; or the store is not named.
    """
    if not _names_model(argv):
        return list(argv)
    options, rest = _named(argv)
    if not options.tracking_uri:
        raise InputError(f"--model {options.model!r}: name the MLflow store with --tracking-uri URI")
    return [*flags_of(options.model, options.tracking_uri), *rest]


def registry_of(argv: Sequence[str]) -> Callable[[], dict[str, Any]] | None:
    """What reads the registry about the model that `--model` names; None where paths are given.

    It raises InputError if the store does not answer, or has no such model.
    """
    if not _names_model(argv):
        return None
    options, _ = _named(argv)

    def describe() -> dict[str, Any]:
        client, name = open_store(options.tracking_uri), name_of(options.model)
        with answers(options.tracking_uri):
            return with_runs(client, described(client, name), options.tracking_uri)

    return describe


def reports_of(argv: Sequence[str]) -> Callable[[str], dict[str, Any] | None] | None:
    """What reads the evaluation report of a version of the model that `--model` names; None where paths are given.

    It raises InputError if the store does not answer, or has no report of that version.
    """
    if not _names_model(argv):
        return None
    options, _ = _named(argv)
    from training.registry.evaluated import evaluation_file  # numpy and pyarrow

    def report(number: str) -> dict[str, Any] | None:
        client, name = open_store(options.tracking_uri), name_of(options.model)
        with answers(options.tracking_uri), tempfile.TemporaryDirectory() as folder:
            version = versions_of(client, name).get(number)
            if version is None:
                return None
            path = evaluation_file(client, version, REPORT, folder)
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found

    return report


def _names_model(argv: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--model" for word in argv)


def _named(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """`--model` and `--tracking-uri`, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--model", "--tracking-uri"):
        parser.add_argument(flag)
    return parser.parse_known_args(argv)


def flags_of(model: str, uri: str) -> list[str]:
    """Flags that open the artefacts of a version and set what it was registered with.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: of the MLflow store.

    Raises:
        InputError: no such version, it was not registered by `clara register`, or its MEMORY or INDEX is missing or
            not the registered one.
    """
    if not is_registered(model):
        raise InputError(f"--model {model!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    checkpoint = local_checkpoint(model, uri)
    from mlflow.models import get_model_info

    from training.registry.served_model import local_path, pointed

    with answers(uri):
        config = dict(get_model_info(model).flavors["python_function"].get("config") or {})
    if "memory_uri" not in config:
        raise InputError(f"--model {model!r}: this version names no MEMORY; register it with clara register")
    flags = {
        "checkpoint": checkpoint,
        "memory": pointed("memory", config),
        "index": pointed("index", config) if config.get("index_uri") else "",
        "backbone": local_path(config["backbone_uri"]),
        "dense-model": local_path(config.get("dense_model_uri", "")),
        "device": config["device"],
        "num-selected": config["num_selected"],
        "max-new-tokens": config["max_new_tokens"],
        "first-level": config["first_level"],
        "exact-rows": config.get("exact_rows", 0),  # an older program registered a model without it
    }
    settings = [f"--set=retrieval.{name}={value}" for name, value in config.get("dense_settings", {}).items()]
    return [*(f"--{name}={value}" for name, value in flags.items() if value != ""), *settings]
