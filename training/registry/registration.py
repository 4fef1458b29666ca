"""What a registered model version consists of: artefacts, lineage, and the settings that the served model reads."""

from dataclasses import dataclass, field
from typing import Any

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of
from clara.storage.paths import absolute, uri

TAG = "clara.registration"
CARD = "model_card.md"
"""Name of the model card among the artefacts of a version's run."""
EVALUATION = "evaluation"
"""Folder of the run's artefacts that holds the evaluation's files."""


@dataclass(frozen=True)
class Registration:
    """What a model version is made of: open artefacts, the evaluated system's name, and how it answers."""

    name: str
    checkpoint: Checkpoint
    memory: Artefact
    index: Artefact | None
    evaluation: Artefact
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
        return {kind: artefact.hash for kind, artefact in {**self._served(), "evaluation": self.evaluation}.items()}

    def _served(self) -> dict[str, Artefact]:
        """The artefacts that answer."""
        served: dict[str, Artefact] = {"checkpoint": self.checkpoint, "memory": self.memory}
        return served if self.index is None else served | {"index": self.index}

    def tags(self) -> dict[str, str]:
        """Lineage: hashes of all artefacts and of the questions, the fingerprint of the vectors; sizes in bytes."""
        questions = self.evaluation.manifest["questions"]
        return {
            **{f"clara.{kind}_hash": value for kind, value in self.hashes().items()},
            **{
                f"clara.{kind}_bytes": str(sum(entry["bytes"] for entry in artefact.manifest["files"]))
                for kind, artefact in self._served().items()
            },
            "clara.questions_hash": questions["manifest"],
            "clara.asked_hash": questions["hash"],
            "clara.fingerprint": self.memory.manifest["fingerprint"],
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
        """Refuse a system that was not evaluated with these artefacts.

        Raises:
            InputError: the evaluation has no such system, or that one was measured with other artefacts.
        """
        systems, evaluation = self.evaluation.manifest["systems"], self.evaluation.folder
        if self.system not in systems:
            raise InputError(f"--system {self.system!r}: {evaluation} has {', '.join(systems)}; name one of them")
        own = self.hashes()
        for kind in ("checkpoint", "memory", "index"):
            measured, given = systems[self.system].get(kind), own.get(kind)
            if measured != given:
                raise InputError(
                    f"--{kind}: its manifest hash is {(given or 'none')[:16]}, system {self.system!r} of "
                    f"{evaluation} was measured with "
                    f"{(measured or 'none')[:16]}; give that {kind}, or evaluate this one"
                )

    def model_config(self) -> dict[str, Any]:
        """Pointers and settings that the served model reads.

        Raises:
            InputError: the language model is not that of the CHECKPOINT.
        """
        folder = self.checkpoint.checked_backbone(self.backbone)
        hashes = self.hashes()
        config: dict[str, Any] = {
            "memory_uri": uri(self.memory.name),
            "memory_hash": hashes["memory"],
            "backbone_uri": "" if self.checkpoint.own_backbone else uri(absolute(folder)),
            "backbone_hash": self.checkpoint.manifest["backbone"]["sha256"],
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
            config |= {"index_uri": uri(self.index.name), "index_hash": hashes["index"]}
        return config
