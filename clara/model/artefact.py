"""A CHECKPOINT that is open: what its manifest says, without loading the model."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

from pydantic import ValidationError

from clara.config.load import explain
from clara.config.model import Model, Prompts
from clara.config.roles import ROLES
from clara.config.tree import Config
from clara.errors import InputError
from clara.model.backbone_files import weights_hash
from clara.storage.artefact import Artefact
from clara.storage.manifest import MANIFEST
from clara.storage.paths import Name

KIND = "CHECKPOINT"
OWN_BACKBONE = "backbone"
_SHOWN_DIGITS = 16
_log = logging.getLogger(__name__)


class Checkpoint(Artefact):
    """An open CHECKPOINT: see `clara.model.checkpoint` for its files."""

    @classmethod
    def open(cls, source: Name | Artefact, kind: str = KIND, *, verify: bool = False, lazy: bool = False) -> Self:
        """Open a CHECKPOINT, see `Artefact.open`.

        Raises:
            InputError: see `Artefact.open`; or a manifest field is missing, or a role is outside the checkpoint.
        """
        opened = super().open(source, kind, verify=verify, lazy=lazy)
        _check_fields(f"{opened.folder}/{MANIFEST}", opened.manifest)
        return opened

    @cached_property
    def settings(self) -> Model:
        """Its model settings.

        Raises:
            InputError: the manifest holds other settings than this program knows.
        """
        try:
            return Model.model_validate(self.manifest["model"])
        except ValidationError as error:
            raise explain(error, f"{self.folder}/{MANIFEST}") from error

    @cached_property
    def prompts(self) -> Prompts:
        """Its prompts.

        Raises:
            InputError: see `settings`.
        """
        try:
            return Prompts.model_validate(self.manifest["prompts"])
        except ValidationError as error:
            raise explain(error, f"{self.folder}/{MANIFEST}") from error

    @property
    def own_backbone(self) -> bool:
        """Whether it holds its LM itself, because that was trained too."""
        return bool(self.manifest["backbone"]["own"])

    def backbone_folder(self, other: str = "") -> str:
        """Folder of its LM: the one that it holds, else `other`, else the one that it names."""
        held = self.manifest["backbone"]
        return str(self.folder / OWN_BACKBONE) if held["own"] else other or str(held["path"])

    def checked_backbone(self, other: str = "") -> str:
        """`backbone_folder`, once its weights are known to be those that the checkpoint was made for.

        Raises:
            InputError: it holds other weights, or none.
        """
        folder, wanted = self.backbone_folder(other), self.manifest["backbone"]["sha256"]
        found = weights_hash(folder)
        if found != wanted:
            raise InputError(
                f"{self.folder}: made for a backbone with sha256 {wanted[:_SHOWN_DIGITS]}…, {folder} has "
                f"{found[:_SHOWN_DIGITS]}…; give the folder of the same weights with backbone.path (--backbone of a "
                "command)"
            )
        return folder


def _check_fields(where: str, manifest: Mapping[str, Any]) -> None:
    missing = [name for name in ("model", "prompts", "backbone", "roles") if not isinstance(manifest.get(name), dict)]
    missing += [f"backbone.{name}" for name in ("own", "path", "sha256") if name not in manifest.get("backbone", {})]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing or no table; take an intact checkpoint")
    if set(manifest["roles"]) != set(ROLES) or not set(manifest["roles"].values()) <= set(ROLES):
        raise InputError(
            f"{where}: roles is {manifest['roles']}, expected a folder among {', '.join(ROLES)} for each of them; "
            "take an intact checkpoint"
        )


def check_given(directory: Name, config: Config, sets: Sequence[str]) -> None:
    """Check settings given for a run against those of its CHECKPOINT, which keeps its own.

    Different ones are refused if they were given on the command line; those of a
    configuration file are reported in a warning, as one file serves several checkpoints.

    Args:
        directory: the CHECKPOINT.
        config: as it was read; settings at their defaults are the CHECKPOINT's.
        sets: the overrides `key=value` of the command line.

    Raises:
        InputError: names each such key of the command line with both values; or no finished CHECKPOINT there.
    """
    checkpoint = Checkpoint.open(directory, lazy=True)
    held = {"model": checkpoint.settings.model_dump(), "prompts": checkpoint.prompts.model_dump()}
    overrides = [override.partition("=")[0].strip() for override in sets]
    refused: list[tuple[str, str]] = []
    passed_over: list[tuple[str, str]] = []
    for key, value in (*config.model.given("model."), *config.prompts.given("prompts.")):
        own: Any = held
        for part in key.split("."):
            own = own.get(part)
        if value != own:
            by_command_line = any(f"{key}.".startswith(f"{name}.") for name in overrides)
            (refused if by_command_line else passed_over).append(
                (key, f"{key} is {value!r:.200}, the checkpoint's {own!r:.200}")
            )
    if passed_over:
        differing = "; ".join(text for _, text in passed_over)
        _log.warning(
            "%s: the checkpoint %s was made with its own and keeps them; the configuration file's are ignored",
            differing,
            directory,
        )
    if refused:
        differing, keys = "; ".join(text for _, text in refused), ", ".join(key for key, _ in refused)
        raise InputError(
            f"{differing}: the checkpoint {directory} was made with its own and keeps them; leave --set {keys} out, or "
            "give a checkpoint that was made "
            "with yours"
        )
