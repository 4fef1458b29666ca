"""Fingerprint: what determines the meaning of a stored vector, so that a compressor never reads another's memory."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from clara.config.encoding import INT8
from clara.config.roles import COMPRESSOR
from clara.data.records import NORMALISATION
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.model.backbone_files import tokenizer_hash, weights_hash
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of
from clara.storage.mapped import as_bfloat16, read_floats
from clara.storage.paths import Name

if TYPE_CHECKING:
    from torch import Tensor

    from clara.arrays import Floats
    from clara.model.model import ClaraModel

_SHOWN_DIGITS = 16
_UNNAMED = 1  # version of the normalisation


@dataclass(frozen=True)
class EncodingSettings:
    """What a user chooses of an encoding; the checkpoint determines the rest. See `Fingerprint` for the fields."""

    max_tokens: int
    overlap_tokens: int
    key_size: int
    key_seed: int
    dtype: str = "bfloat16"
    normalisation: int = NORMALISATION


@dataclass(frozen=True)
class Fingerprint:
    """The settings that determine a vector's meaning; shard count, codec, batch size and runner do not.

    Attributes:
        backbone: sha256 of the LM's weights.
        compressor: sha256 of the compressor's adapter and memory tokens, as they are used (`compressor_hash`).
        tokenizer: sha256 of the tokenizer.
        dtype: type that the compressor computes in: `float32`, `bfloat16` or `int8`.
        num_memory_tokens: M.
        hidden_size: D.
        residual: `none` or `segment_mean`.
        markers: whether a learned vector precedes each text.
        max_tokens: tokens of a chunk, title included.
        overlap_tokens: tokens that a chunk repeats of the one before.
        key_size: numbers of a row's key.
        key_seed: seed of the key projection.
        normalisation: version of `clara.data.records.normalise`; manifests do not name the first one.
    """

    backbone: str
    compressor: str
    tokenizer: str
    dtype: str
    num_memory_tokens: int
    hidden_size: int
    residual: str
    markers: bool
    max_tokens: int
    overlap_tokens: int
    key_size: int
    key_seed: int
    normalisation: int = NORMALISATION

    @property
    def hash(self) -> str:
        """Sha256 (hex) of all fields."""
        return hash_of(self.as_dict())

    @property
    def encoding(self) -> EncodingSettings:
        """The settings among the fields that do not follow from the checkpoint."""
        return EncodingSettings(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(EncodingSettings)}
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, as a manifest holds them."""
        fields = dataclasses.asdict(self)
        if self.normalisation == _UNNAMED:
            del fields["normalisation"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str = "fingerprint_fields") -> "Fingerprint":
        """The fingerprint of a manifest's fields.

        Raises:
            InputError: a field is missing or unknown; `where` names the place.
        """
        fields = {"normalisation": _UNNAMED, **fields}
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            missing, extra = sorted(known - set(fields)), sorted(set(fields) - known)
            raise InputError(
                f"{where}: missing fields {missing}, unknown fields {extra}; it was made by another version, "
                "make it again"
            )
        return cls(**fields)


Accepted = Fingerprint | Mapping[str, Any] | str


def check(expected: Collection[Accepted], found: Fingerprint | Mapping[str, Any], where: str = "MEMORY") -> None:
    """Refuse vectors whose fingerprint is not among those expected.

    Args:
        expected: fingerprints, their fields, or only their hashes.
        found: of the vectors at hand.
        where: what holds them, for the message.

    Raises:
        InputError: none is equal; the message prints both sides, field by field where they are known.
    """
    fields = found.as_dict() if isinstance(found, Fingerprint) else dict(found)
    hashes = {hash_of_accepted(e) for e in expected}
    if hash_of(fields) in hashes:
        return
    sides = []
    for candidate in expected:
        if isinstance(candidate, str):
            sides.append(
                f"expected fingerprint {candidate[:_SHOWN_DIGITS]}…, "
                f"found {hash_of(fields)[:_SHOWN_DIGITS]}… ({_shown(fields)})"
            )
        else:
            sides.append(_differences(_fields(candidate), fields))
    dtypes = {candidate["dtype"] for candidate in map(_fields, expected) if "dtype" in candidate}
    if dtypes and fields.get("dtype") not in (None, *dtypes):
        # The compressor is hashed as it is used, rounded to the dtype: that its hash differs says nothing here.
        made, types = fields["dtype"], " or ".join(sorted(dtypes))
        remedy = "" if made == INT8 else f"set backbone.dtype to {made} (--dtype {made} of a command), or "
        raise InputError(
            f"{where}: made in dtype {made}, this reader computes in {types}: {' | '.join(sides)}; {remedy}build it "
            f"again with --dtype {types} (the compressor's hash follows from the dtype, so it may be the same one)"
        )
    raise InputError(
        f"{where}: made by another compressor or with other settings than this reader accepts: "
        f"{' | '.join(sides) or 'nothing is accepted'}; "
        "give the MEMORY of this checkpoint, the checkpoint of this MEMORY, or build it again"
    )


def hash_of_accepted(fingerprint: Accepted) -> str:
    """The hash of a fingerprint in any of its forms."""
    if isinstance(fingerprint, str):
        return fingerprint
    return fingerprint.hash if isinstance(fingerprint, Fingerprint) else hash_of(dict(fingerprint))


def _short(value: Any) -> str:
    return f"{value[:_SHOWN_DIGITS]}…" if isinstance(value, str) and len(value) > _SHOWN_DIGITS else repr(value)


def _shown(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in fields.items())


def _fields(fingerprint: Accepted) -> dict[str, Any]:
    """Its fields; none where only the hash is known."""
    if isinstance(fingerprint, str):
        return {}
    return fingerprint.as_dict() if isinstance(fingerprint, Fingerprint) else dict(fingerprint)


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    # The dtype first: the compressor's hash follows from it.
    names = sorted([*expected, *(name for name in found if name not in expected)], key=lambda name: name != "dtype")
    unequal = [name for name in names if expected.get(name) != found.get(name)]
    return "; ".join(
        f"{name}: expected {_short(expected.get(name))}, found {_short(found.get(name))}" for name in unequal
    )


def compressor_hash(
    adapter: Mapping[str, "Floats"], slots: Mapping[str, "Floats"], *, dtype: str, settings: Mapping[str, Any]
) -> str:
    """Sha256 of what determines memory besides the LM; equal for a model, its checkpoint, and the loaded checkpoint.

    Args:
        adapter: the compressor's tensors under PEFT's names; hashed as they are used, rounded to `dtype`.
        slots: `memory_tokens [M, D]`, `markers [2, D]` (the first one precedes a text), `gate [M]`.
        dtype: `float32`, `bfloat16` or `int8`.
        settings: the checkpoint's model settings; those without influence on memory are left out.
    """
    tensors = {name: as_bfloat16(values) if dtype == "bfloat16" else values for name, values in adapter.items()}
    tensors["memory_tokens"] = slots["memory_tokens"]
    if settings["markers"]:
        tensors["marker"] = slots["markers"][0]
    if settings["residual"] != "none":
        tensors["gate"] = slots["gate"]
    digest = hashlib.sha256(f"{settings['lora']['alpha'] / settings['lora']['rank']!r}".encode())
    if settings.get("cut_inputs"):
        digest.update(f"cut {settings['max_document_tokens']}".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def of_memory(memory: Artefact) -> Fingerprint:
    """The fingerprint that a MEMORY's manifest states; of its newest shards where versions are mixed.

    Raises:
        InputError: a field is missing or unknown.
    """
    return Fingerprint.from_dict(
        memory.manifest.get("fingerprint_fields", {}), f"{memory.folder}/manifest.json fingerprint_fields"
    )


def of_model(model: "ClaraModel", encoding: EncodingSettings) -> Fingerprint:
    """Fingerprint of what a loaded model compresses to; the dtype is the model's own, not `encoding.dtype`.

    The LM is known by the folder that it was read from: one that is itself being trained has to be saved and loaded
    first.
    """
    from clara.model.lora import adapter_tensors  # imports torch

    backbone = model.backbone
    return _fingerprint(
        _floats(adapter_tensors(backbone.layers, COMPRESSOR, backbone.trunk_path)),
        _floats(model.slots.state_dict()),
        settings=model.settings.model_dump(),
        encoding=dataclasses.replace(encoding, dtype=backbone.type_of_passes(COMPRESSOR)),
        backbone=weights_hash(backbone.folder),
        tokenizer=tokenizer_hash(model.tokenizer.name_or_path),
    )


def of_checkpoint(source: Name | Artefact, encoding: EncodingSettings, *, backbone: str = "") -> Fingerprint:
    """Fingerprint of what a CHECKPOINT compresses to, without loading its LM.

    Args:
        source: the CHECKPOINT, or its directory.
        encoding: the settings.
        backbone: folder of the LM; empty: the one that the checkpoint holds or names.

    Raises:
        InputError: unfinished or damaged, or the backbone has other weights.
    """
    checkpoint = Checkpoint.open(source)
    folder = checkpoint.checked_backbone(backbone)
    try:
        adapter = read_floats(
            checkpoint.folder / checkpoint.manifest["roles"]["compressor"] / "adapter_model.safetensors"
        )
        slots = read_floats(checkpoint.folder / "memory_tokens.safetensors")
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"{checkpoint.folder}: the compressor's files are not readable ({error}); take an intact checkpoint"
        ) from error
    return _fingerprint(
        adapter,
        slots,
        settings=checkpoint.manifest["model"],
        encoding=encoding,
        backbone=weights_hash(folder),
        tokenizer=tokenizer_hash(checkpoint.folder / "tokenizer"),
    )


def _floats(tensors: Mapping[str, "Tensor"]) -> dict[str, "Floats"]:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def _fingerprint(
    adapter: Mapping[str, "Floats"],
    slots: Mapping[str, "Floats"],
    *,
    settings: Mapping[str, Any],
    encoding: EncodingSettings,
    backbone: str,
    tokenizer: str,
) -> Fingerprint:
    num_memory_tokens, hidden_size = slots["memory_tokens"].shape
    return Fingerprint(
        backbone=backbone,
        compressor=compressor_hash(adapter, slots, dtype=encoding.dtype, settings=settings),
        tokenizer=tokenizer,
        num_memory_tokens=num_memory_tokens,
        hidden_size=hidden_size,
        residual=settings["residual"],
        markers=settings["markers"],
        **dataclasses.asdict(encoding),
    )
