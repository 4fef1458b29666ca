"""What determines the meaning of a stored vector, as named fields and one hash: a compressor never silently meets another's memory."""

import dataclasses
import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clara.errors import InputError
from clara.model.backbone import tokenizer_hash, weights_hash
from clara.model.lora import adapter_tensors
from clara.storage.artefact import hash_of, read_manifest
from clara.storage.cache import localised

if TYPE_CHECKING:
    from clara.model.model import ClaraModel

_SHOWN_DIGITS = 16


@dataclass(frozen=True)
class Fingerprint:
    """Exactly the settings that determine a vector's meaning. Shard count, codec, batch size and runner are not among them.

    Attributes:
        backbone: sha256 of the LM's weights.
        compressor: sha256 of the compressor's adapter and memory tokens, as they are used (`compressor_hash`).
        tokenizer: sha256 of the tokenizer.
        dtype: type that the compressor computes in.
        num_memory_tokens: M.
        hidden_size: D.
        residual: `none` or `segment_mean`.
        markers: whether a learned vector stands in front of each text.
        max_tokens: tokens of a chunk, title included.
        overlap_tokens: tokens that a chunk repeats of the one before.
        key_size: numbers of a row's key.
        key_seed: seed of the key projection.
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

    @property
    def hash(self) -> str:
        """Sha256 (hex) of all fields."""
        return hash_of(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The fields, as a manifest holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], where: str = "fingerprint_fields") -> "Fingerprint":
        """The fingerprint of a manifest's fields.

        Raises:
            InputError: a field is missing or unknown; `where` names the place.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            missing, extra = sorted(known - set(fields)), sorted(set(fields) - known)
            raise InputError(
                f"{where}: missing fields {missing}, unknown fields {extra}; it was made by another version, make it again"
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
                f"expected fingerprint {candidate[:_SHOWN_DIGITS]}…, found {hash_of(fields)[:_SHOWN_DIGITS]}… ({_shown(fields)})"
            )
        else:
            sides.append(_differences(_fields(candidate), fields))
    dtypes = {candidate["dtype"] for candidate in map(_fields, expected) if "dtype" in candidate}
    if dtypes and fields.get("dtype") not in (None, *dtypes):
        # The compressor is hashed as it is used, rounded to the dtype: that its hash differs says nothing here.
        raise InputError(
            f"{where}: made in dtype {fields['dtype']}, this reader computes in {' or '.join(sorted(dtypes))}: {' | '.join(sides)}; set "
            f"backbone.dtype to {fields['dtype']} (--dtype {fields['dtype']} of a command), or build it again with --dtype "
            f"{' or '.join(sorted(dtypes))} (the compressor's hash follows from the dtype, so it may be the same one)"
        )
    raise InputError(
        f"{where}: made by another compressor or with other settings than this reader accepts: {' | '.join(sides) or 'nothing is accepted'}; "
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
    adapter: Mapping[str, Tensor], slots: Mapping[str, Tensor], *, dtype: str, settings: Mapping[str, Any]
) -> str:
    """Sha256 of what makes memory besides the LM: equal for a live model, its checkpoint, and the checkpoint loaded again.

    Args:
        adapter: the compressor's tensors under PEFT's names; hashed as they are used, rounded to `dtype`.
        slots: `memory_tokens [M, D]`, `markers [2, D]` (the first one stands in front of a text), `gate [M]`.
        dtype: `float32` or `bfloat16`.
        settings: the checkpoint's model settings; those without influence on memory are left out.
    """
    tensors = {name: tensor.detach().to(getattr(torch, dtype)) for name, tensor in adapter.items()}
    tensors["memory_tokens"] = slots["memory_tokens"]
    if settings["markers"]:
        tensors["marker"] = slots["markers"][0]
    if settings["residual"] != "none":
        tensors["gate"] = slots["gate"]
    digest = hashlib.sha256(f"{settings['lora']['alpha'] / settings['lora']['rank']!r}".encode())
    if settings.get("cut_inputs"):
        digest.update(f"cut {settings['max_document_tokens']}".encode())
    for name in sorted(tensors):
        values = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {list(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def of_model(model: "ClaraModel", *, max_tokens: int, overlap_tokens: int, key_size: int, key_seed: int) -> Fingerprint:
    """Fingerprint of what a model in memory compresses to.

    The LM is known by the folder that it was read from: one that is itself being trained has to be saved and loaded
    first.
    """
    settings, backbone = model.settings.model_dump(), model.backbone
    dtype = str(backbone.dtype).removeprefix("torch.")
    adapter = adapter_tensors(backbone.layers, "compressor", backbone.trunk_path)
    return Fingerprint(
        backbone=weights_hash(backbone.folder),
        compressor=compressor_hash(adapter, dict(model.slots.state_dict()), dtype=dtype, settings=settings),
        tokenizer=tokenizer_hash(model.tokenizer.name_or_path),
        dtype=dtype,
        num_memory_tokens=model.num_memory_tokens,
        hidden_size=model.hidden_size,
        residual=settings["residual"],
        markers=settings["markers"],
        max_tokens=max_tokens,
        overlap_tokens=overlap_tokens,
        key_size=key_size,
        key_seed=key_seed,
    )


def backbone_folder(checkpoint: str | os.PathLike[str], backbone: str) -> str:
    """Folder of a CHECKPOINT's LM: the one that it holds, else the one that is given, else the one that it names."""
    directory = localised(checkpoint, "CHECKPOINT")
    held = read_manifest(directory, "CHECKPOINT")["backbone"]
    return str(directory / "backbone") if held["own"] else backbone or held["path"]


def of_checkpoint(
    checkpoint: str | os.PathLike[str],
    *,
    backbone: str,
    dtype: str,
    max_tokens: int,
    overlap_tokens: int,
    key_size: int,
    key_seed: int,
) -> Fingerprint:
    """Fingerprint of what a CHECKPOINT compresses to, without loading its LM.

    Args:
        checkpoint: the CHECKPOINT.
        backbone: folder of the LM; empty: the one that the checkpoint holds or names.
        dtype: type to compute in.
        max_tokens: tokens of a chunk.
        overlap_tokens: tokens that a chunk repeats.
        key_size: numbers of a key.
        key_seed: of the key projection.

    Raises:
        InputError: unfinished or damaged, or the backbone has other weights.
    """
    directory = localised(checkpoint, "CHECKPOINT")
    manifest = read_manifest(directory, "CHECKPOINT")
    folder = backbone_folder(checkpoint, backbone)
    found = weights_hash(folder)
    if found != manifest["backbone"]["sha256"]:
        raise InputError(
            f"{directory}: made for a backbone with sha256 {manifest['backbone']['sha256'][:_SHOWN_DIGITS]}…, {folder} has "
            f"{found[:_SHOWN_DIGITS]}…; give the folder of the same weights"
        )
    try:
        adapter = load_file(directory / manifest["roles"]["compressor"] / "adapter_model.safetensors")
        slots = load_file(directory / "memory_tokens.safetensors")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{directory}: the compressor's files are not readable ({error}); take an intact checkpoint"
        ) from error
    settings = manifest["model"]
    num_memory_tokens, hidden_size = slots["memory_tokens"].shape
    return Fingerprint(
        backbone=found,
        compressor=compressor_hash(adapter, slots, dtype=dtype, settings=settings),
        tokenizer=tokenizer_hash(directory / "tokenizer"),
        dtype=dtype,
        num_memory_tokens=num_memory_tokens,
        hidden_size=hidden_size,
        residual=settings["residual"],
        markers=settings["markers"],
        max_tokens=max_tokens,
        overlap_tokens=overlap_tokens,
        key_size=key_size,
        key_seed=key_seed,
    )
