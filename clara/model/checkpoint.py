"""CHECKPOINT: the portable model, in safetensors and JSON, without pickle.

It holds adapters as PEFT folders, memory tokens, the tokenizer and resolved settings.

manifest.json
compressor/ query_reasoner/ generator/   adapter_config.json, adapter_model.safetensors
memory_tokens.safetensors                memory_tokens, markers, gate
question_mean.safetensors                mean: of query vectors, if the score is centred
added_tokens.safetensors                 input, output: rows of tokens that only the LM has (imported checkpoints)
tokenizer/                               the tokenizer's files
backbone/                                the LM itself, only where it was trained too
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers.modeling_utils import unwrap_model

from clara.config.encoding import INT8, check_encoding, type_of_lm
from clara.config.model import Backbone as BackboneSettings
from clara.config.roles import COMPRESSOR, QUERY_REASONER, ROLES
from clara.config.tree import Config
from clara.errors import InputError
from clara.model import lora
from clara.model.artefact import OWN_BACKBONE, Checkpoint
from clara.model.backbone import Backbone
from clara.model.backbone_files import load_tokenizer, tokenizer_hash, weights_hash
from clara.model.int8 import merge_in_int8
from clara.model.model import ClaraModel
from clara.storage.artefact import Artefact
from clara.storage.folders import atomic_write
from clara.storage.manifest import file_entry, make_directory, refuse_other, write_manifest
from clara.storage.paths import Name

logger = logging.getLogger(__name__)
SLOTS_FILE = "memory_tokens.safetensors"
QUESTION_MEAN_FILE = "question_mean.safetensors"
ADDED_FILE = "added_tokens.safetensors"


def save_checkpoint(
    model: ClaraModel,
    directory: str | os.PathLike[str],
    *,
    stage: str,
    recipe: Mapping[str, Any],
    store_backbone: bool = False,
    separate_query_reasoner: bool = True,
    dtype: torch.dtype | None = None,
    fit_share: float = 0.0,
) -> dict[str, Any]:
    """Write a CHECKPOINT and return its manifest.

    Args:
        model: its adapters, memory tokens and tokenizer are stored.
        directory: is made; an older manifest there is removed first, so that a half-written checkpoint is none.
        stage: the stage that made it.
        recipe: what made it.
        store_backbone: the LM too (it was trained).
        separate_query_reasoner: false where it still is a copy of the compressor, which is then not stored twice.
        dtype: of the stored adapters; None: the backbone's, in which they are used.
        fit_share: share of the targets that stage joint has never trained on, see `joint.fit_share`.
    """
    directory = make_directory(directory)
    refuse_other(directory, "CHECKPOINT")
    (directory / "manifest.json").unlink(missing_ok=True)
    backbone, base = model.backbone, "" if store_backbone else model.backbone.folder
    if store_backbone:
        _save_plain_lm(model, str(directory / OWN_BACKBONE))
    roles = {role: role for role in ROLES}
    if not separate_query_reasoner:
        roles[QUERY_REASONER] = COMPRESSOR
    files = [
        f"{role}/{name}"
        for role in sorted(set(roles.values()))
        for name in lora.save_adapter(
            backbone.layers,
            role,
            directory / role,
            model.settings.lora,
            trunk_path=backbone.trunk_path,
            base=base,
            dtype=dtype or backbone.dtype,
        )
    ]
    # A stored LM has the added tokens among its own rows.
    added = {} if store_backbone else backbone.added_tokens()
    files += _save_tensors(model, directory, added)
    model.tokenizer.save_pretrained(directory / "tokenizer")
    for sub in ("tokenizer", OWN_BACKBONE) if store_backbone else ("tokenizer",):
        files += sorted(str(p.relative_to(directory)) for p in (directory / sub).rglob("*") if p.is_file())
    extra: dict[str, Any] = {"added_tokens": {"follow": backbone.num_kept_tokens}} if added else {}
    extra |= {"fit_share": fit_share} if fit_share else {}
    return write_manifest(
        directory,
        kind="CHECKPOINT",
        files=[file_entry(directory, f) for f in files],
        recipe=recipe,
        stage=stage,
        roles=roles,
        backbone={
            "path": base,
            "own": store_backbone,
            "sha256": weights_hash(directory / OWN_BACKBONE if store_backbone else base),
        },
        tokenizer=tokenizer_hash(directory / "tokenizer"),
        **extra,
        model=model.settings.model_dump(),
        prompts=model.prompts.prompts.model_dump(),
    )


def _save_tensors(model: ClaraModel, directory: Path, added: Mapping[str, Tensor]) -> list[str]:
    """Write what trains beside the adapters, and the added tokens. Returns the file names."""
    slots = {name: p.detach().float().cpu().contiguous() for name, p in model.slots.state_dict().items()}
    atomic_write(directory / SLOTS_FILE, save(slots, metadata={"format": "pt"}))
    files = [SLOTS_FILE]
    if model.question_mean.mean is not None:
        save_question_mean(directory, model.question_mean.mean)
        files.append(QUESTION_MEAN_FILE)
    if added:
        rows = {name: tensor.detach().cpu().contiguous() for name, tensor in added.items()}
        atomic_write(directory / ADDED_FILE, save(rows, metadata={"format": "pt"}))
        files.append(ADDED_FILE)
    return files


def save_question_mean(directory: Path, mean_MD: Tensor) -> None:
    """Write the questions' mean into the folder of a CHECKPOINT."""
    tensors = {"mean": mean_MD.detach().float().cpu().contiguous()}
    atomic_write(directory / QUESTION_MEAN_FILE, save(tensors, metadata={"format": "pt"}))


def prepare_to_store_backbone() -> None:
    """Import now what transformers imports when it saves its first LM, so that training does not wait for it."""
    unwrap_model(nn.Identity())


def _save_plain_lm(model: ClaraModel, folder: str) -> None:
    """Write the LM without its adapters, under the names that transformers reads."""
    tensors = {
        name.replace(".base.", "."): t for name, t in model.backbone.lm.state_dict().items() if ".adapters." not in name
    }
    model.backbone.lm.save_pretrained(folder, state_dict=tensors)
    model.tokenizer.save_pretrained(folder)


def _add_tokens(backbone: Backbone, directory: Path, entry: Mapping[str, Any]) -> None:
    """Extend a backbone by the tokens that a checkpoint holds for it."""
    path = directory / ADDED_FILE
    try:
        rows = load_file(path)
        num_kept, input_AD, output_AD = int(entry["follow"]), rows["input"], rows["output"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not readable as the tokens that the manifest lists ({error!r}); take an intact checkpoint"
        ) from error
    backbone.extend_vocabulary(num_kept, input_AD, output_AD)


def check_device(device: str) -> None:
    """Check that torch knows a device, and that it is there.

    Raises:
        InputError: torch does not know the device, or it is not available.
    """
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r}: no kind of device that torch knows; give 'cpu' or 'cuda'") from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: no CUDA device here; ask for 'cpu', or run where there is one")


def fresh_model(config: Config, *, device: str = "cpu") -> ClaraModel:
    """A model with untrained adapters on the configured backbone, seeded by the configuration.

    Raises:
        InputError: no backbone in the configured folder, or a device that is not there.
    """
    check_device(device)
    torch.manual_seed(config.seed)
    backbone = Backbone.load(config.backbone, config.model.lora, ROLES)
    return ClaraModel(backbone, load_tokenizer(config.backbone.path), config.model, config.prompts).to(device)


def load_checkpoint(
    source: Name | Artefact,
    backbone: BackboneSettings | None = None,
    *,
    device: str = "cpu",
    check: bool = True,
) -> ClaraModel:
    """Read a CHECKPOINT with its own model settings and prompts; the caller chooses only where the backbone is loaded.

    Args:
        source: the CHECKPOINT, or its directory; of a URL its copy on this machine is read.
        backbone: folder, dtype and attention; an empty path takes the folder that the checkpoint names, or holds.
        device: of the model; fails if unavailable.
        check: read every byte against the manifest first.

    Raises:
        InputError: unfinished, damaged, for another backbone, or for other settings than this program knows.
    """
    checkpoint = Checkpoint.open(source, verify=check)
    backbone = backbone or BackboneSettings()
    folder = checkpoint.checked_backbone(backbone.path)
    check_device(device)
    loaded = Backbone.load(backbone.model_copy(update={"path": folder}), checkpoint.settings.lora, ROLES)
    directory, manifest = checkpoint.folder, checkpoint.manifest
    if "added_tokens" in manifest:
        _add_tokens(loaded, directory, manifest["added_tokens"])
    model = ClaraModel(loaded, load_tokenizer(directory / "tokenizer"), checkpoint.settings, checkpoint.prompts)
    for role in ROLES:
        lora.load_adapter(
            model.backbone.layers, role, directory / manifest["roles"][role], trunk_path=model.backbone.trunk_path
        )
    _load_parameters(model.slots, directory / SLOTS_FILE)
    if model.question_mean.mean is not None:
        _load_parameters(model.question_mean, directory / QUESTION_MEAN_FILE)
    return model.to(device)


def load_compressor(source: Name | Artefact, dtype: str, *, backbone: str = "", device: str = "cpu") -> ClaraModel:
    """Read a CHECKPOINT to compress in the type of a fingerprint, in eval mode.

    In int8, compression alone is: other roles of the model compute in float32.

    Raises:
        InputError: see `load_checkpoint`; or int8 on another device than the CPU.
    """
    check_encoding(dtype, device)
    model = load_checkpoint(source, BackboneSettings(path=backbone, dtype=type_of_lm(dtype)), device=device).eval()
    if dtype == INT8:
        merge_in_int8(model.backbone.layers, COMPRESSOR)
    return model


def _load_parameters(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: does not fit the settings in the manifest ({error}); take an intact checkpoint"
        ) from error
