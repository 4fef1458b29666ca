"""The CHECKPOINT of a registered model version, named `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from clara.errors import InputError
from clara.storage.artefact import Artefact
from clara.storage.cache import cache_directory, locked
from clara.storage.paths import is_registered
from clara.tracking.database import reason_of
from training.registry.store import answers, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_NAME = re.compile(r"models:/(?P<name>[^/:.%\"'@]+)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>\d+))")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def name_of(model: str) -> str:
    """The name in `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        InputError: `model` has another form.
    """
    if (parts := _NAME.fullmatch(model)) is None:
        raise InputError(f"--model {model!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return parts["name"]


def local_checkpoint(checkpoint: str, uri: str) -> str:
    """The folder of a registered CHECKPOINT; any other path or URL as it is.

    The folder is the one that was registered, if it still holds the same CHECKPOINT; else a copy in the cache.

    Args:
        checkpoint: path, URL, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: of the MLflow store; read only for a registered model.

    Raises:
        InputError: no such model, alias or version; its artefact is not the registered CHECKPOINT; or the store does
            not answer.
    """
    if not is_registered(checkpoint):
        return checkpoint
    parts = _NAME.fullmatch(checkpoint)
    if parts is None:
        raise InputError(f"checkpoint {checkpoint!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    if not uri:
        raise InputError(
            f"checkpoint {checkpoint!r}: tracking.uri is empty; name the MLflow store with --set tracking.uri=URI"
        )
    client = open_store(uri)
    with answers(uri):
        version = _version(client, checkpoint, parts)
        return str(_folder(checkpoint, version))


def _version(client: "MlflowClient", checkpoint: str, parts: re.Match[str]) -> "ModelVersion":
    """The version that a name means."""
    name, alias = parts["name"], parts["alias"]
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if not versions:
        models = ", ".join(sorted(model.name for model in client.search_registered_models()))
        raise InputError(
            f"checkpoint {checkpoint!r}: no version of model {name} is registered; the store has {models or 'no model'}"
        )
    aliases = client.get_registered_model(name).aliases if alias else {}
    if alias and alias not in aliases:
        raise InputError(
            f"checkpoint {checkpoint!r}: {name} has no alias {alias}; it has "
            f"{', '.join(sorted(aliases)) or 'none'}, and versions {', '.join(sorted(versions, key=int))}"
        )
    number = str(aliases[alias]) if alias else str(int(parts["version"]))
    if number not in versions:
        raise InputError(
            f"checkpoint {checkpoint!r}: {name} has no version {number}; it has {', '.join(sorted(versions, key=int))}"
        )
    return versions[number]


def _folder(checkpoint: str, version: "ModelVersion") -> Path:
    """The folder with a version's CHECKPOINT."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    expected = str(version.tags.get("clara.checkpoint_hash"))
    if not _SHA256.fullmatch(expected):
        raise InputError(
            f"checkpoint {checkpoint!r}: version {version.version} has no tag clara.checkpoint_hash; "
            "register the model with python -m training.register"
        )
    model = f"models:/{version.name}/{version.version}"
    try:
        artefact = get_model_info(model).flavors["python_function"]["artifacts"]["checkpoint"]
    except (MlflowException, OSError, KeyError) as error:
        raise _unreadable(checkpoint, version, error) from error
    registered, cached = Path(artefact["uri"]), cache_directory() / "registered" / expected
    for folder in (registered, cached):
        if _holds(folder, expected):
            return folder
    with locked(f"registered-{expected}"):
        if not _holds(cached, expected):  # another process may have been faster
            _download(checkpoint, version, f"{model}/{artefact['path']}", cached)
    return cached


def _holds(folder: Path, expected: str) -> bool:
    """Whether a folder holds the CHECKPOINT with this manifest hash, each file with its size."""
    with suppress(InputError):
        found = Artefact.open(folder, "CHECKPOINT")
        found.check_sizes()
        return found.hash == expected
    return False


def _download(checkpoint: str, version: "ModelVersion", source: str, target: Path) -> None:
    """Copy a version's CHECKPOINT; it appears at `target`, named by its hash, once every byte is checked."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        copy = download_artifacts(source, dst_path=str(partial))
    except (MlflowException, OSError) as error:
        raise _unreadable(checkpoint, version, error) from error
    try:
        found = Artefact.open(copy, "CHECKPOINT", verify=True).hash
    except InputError as error:
        raise _unreadable(checkpoint, version, error) from error
    if found != target.name:
        raise InputError(
            f"checkpoint {checkpoint!r}: the CHECKPOINT of version {version.version} has manifest hash {found[:16]}…, "
            f"{target.name[:16]}… was registered; register the model again"
        )
    shutil.rmtree(target, ignore_errors=True)
    os.replace(copy, target)
    shutil.rmtree(partial)


def _unreadable(checkpoint: str, version: "ModelVersion", error: Exception) -> InputError:
    return InputError(
        f"checkpoint {checkpoint!r}: no CHECKPOINT can be read from version {version.version} ({reason_of(error)}); "
        "start the store's server, or register the model again"
    )
