"""What a registered model version consists of: artefacts, lineage, and the settings that the served model reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.model.artefact import OWN_BACKBONE
from clara.model.backbone_files import weights_hash
from clara.storage.manifest import hash_of, manifest_hash, read_manifest
from clara.storage.paths import Name, absolute, uri

TAG = "clara.registration"
CARD = "model_card.md"
"""Name of the model card among the artefacts of a version's run."""
EVALUATION = "evaluation"
"""Folder of the run's artefacts that holds the evaluation's files."""


@dataclass(frozen=True)
class Registration:
    """What a model version is made of: directories, the evaluated system's name, and how it answers."""

    name: str
    checkpoint: Path
    memory: Name
    index: Name | None
    evaluation: Path
    system: str
    backbone: str
    num_selected: int
    max_new_tokens: int
    first_level: int
    exact_rows: int
    device: str
    dense: Retrieval = field(default_factory=Retrieval)

    def hashes(self) -> dict[str, str]:
        """Manifest hashes of its artefacts."""
        named = {**self._served(), "evaluation": self.evaluation}
        return {kind: manifest_hash(path) for kind, path in named.items()}

    def _served(self) -> dict[str, Name]:
        """The artefacts that answer."""
        named = {"checkpoint": self.checkpoint, "memory": self.memory, "index": self.index}
        return {kind: path for kind, path in named.items() if path is not None}

    def tags(self) -> dict[str, str]:
        """Lineage: hashes of all artefacts and of the questions, the fingerprint of the vectors; sizes in bytes."""
        questions = read_manifest(self.evaluation, "EVALUATION")["questions"]
        return {
            **{f"clara.{kind}_hash": value for kind, value in self.hashes().items()},
            **{
                f"clara.{kind}_bytes": str(sum(entry["bytes"] for entry in read_manifest(path)["files"]))
                for kind, path in self._served().items()
            },
            "clara.questions_hash": questions["manifest"],
            "clara.asked_hash": questions["hash"],
            "clara.fingerprint": read_manifest(self.memory, "MEMORY")["fingerprint"],
            "clara.system": self.system,
        }

    def identity(self) -> str:
        """Hash of everything that the version depends on: an equal one is not registered twice."""
        answering = [self.num_selected, self.max_new_tokens, self.first_level, self.exact_rows, self.device]
        answering += [self.dense.dense_model] if self.dense.dense_model else []
        answering += [asked] if (asked := self._dense_settings()) else []
        return hash_of([self.name, self.system, self.hashes(), answering])

    def _dense_settings(self) -> dict[str, Any]:
        """Settings of the embedding model that are not at their defaults, but for where it is."""
        return self.dense.model_dump(exclude_defaults=True, exclude={"dense_model"})

    def check(self) -> None:
        """Refuse what was not evaluated.

        Raises:
            InputError: the evaluation has no such system, or that one was measured with other artefacts.
        """
        systems = read_manifest(self.evaluation, "EVALUATION")["systems"]
        if self.system not in systems:
            raise InputError(f"--system {self.system!r}: {self.evaluation} has {', '.join(systems)}; name one of them")
        own = self.hashes()
        for kind in ("checkpoint", "memory", "index"):
            measured, given = systems[self.system].get(kind), own.get(kind)
            if measured != given:
                raise InputError(
                    f"--{kind}: its manifest hash is {(given or 'none')[:16]}, system {self.system!r} of "
                    f"{self.evaluation} was measured with "
                    f"{(measured or 'none')[:16]}; give that {kind}, or evaluate this one"
                )

    def model_config(self) -> dict[str, Any]:
        """Pointers and settings that the served model reads."""
        manifest = read_manifest(self.checkpoint, "CHECKPOINT")
        own = manifest["backbone"]["own"]
        backbone = "" if own else absolute(self.backbone or manifest["backbone"]["path"])
        found = weights_hash(self.checkpoint / OWN_BACKBONE if own else backbone)
        if found != manifest["backbone"]["sha256"]:
            raise InputError(
                f"--backbone {backbone}: weights {found[:16]}…, the CHECKPOINT was made for "
                f"{manifest['backbone']['sha256'][:16]}…; "
                "give the folder of the same weights"
            )
        hashes = self.hashes()
        config: dict[str, Any] = {
            "memory_uri": uri(self.memory),
            "memory_hash": hashes["memory"],
            "backbone_uri": uri(backbone) if backbone else "",
            "backbone_hash": found,
            "num_selected": self.num_selected,
            "max_new_tokens": self.max_new_tokens,
            "first_level": self.first_level,
            "exact_rows": self.exact_rows,
            "device": self.device,
        }
        if self.dense.dense_model:
            config["dense_model_uri"] = uri(absolute(self.dense.dense_model))
        if asked := self._dense_settings():
            config["dense_settings"] = asked
        if self.index is not None:
            config |= {"index_uri": uri(self.index), "index_hash": hashes["index"]}
        return config
