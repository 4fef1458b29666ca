"""A checkpoint of the published implementation on disk: which fields and tensors it has, read without running code.

Facts and numbers of sections as in the notes on the reference (clara.md).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from clara.config.model import Lora, Model
from clara.errors import InputError
from clara.import_reference.files import ADAPTERS, CONFIG, LAYERS

KNOWN_ADAPTERS = ("encoder_adapter", "query_reasoner_adapter", "decoder_adapter")
STAGE_OF = {
    "stage1": "pretrain",
    "stage1_2": "instruct",
    "stage2": "joint",
    "stage2_pretrain_retrieval": "joint",
    "stage2_reasoning": "joint",
}

# Fields that determine the numbers: those that are read, and those of which one value is supported.
READ = ("doc_max_length", "compr_rate", "lora_r", "different_mem_tokens", "sep", "training_stage")
_ONLY: dict[str, tuple[Any, ...]] = {
    "lora": (True,),
    "training_form": ("both_separately",),
    "quantization": ("no", None),
    "compr_model_name": (None,),
    "kbtc_training": (False,),
    "lora_compressor": (False,),
    "ae_mode": ("token",),
    "model_type": ("CLaRa",),
}
# Without influence on what the model computes: names of folders, run-time choices, and fields of code that the
# reference never reaches.
_LEFT = {
    "_attn_implementation_autoset",
    "attn_implementation",
    "auto_map",
    "compr_base_model_name",
    "compr_every_n_layer",
    "compr_linear_type",
    "compr_mlp_hidden_dim",
    "compr_n_layers",
    "compr_rms_norm",
    "compr_use_mlp",
    "decoder_model_name",
    "device_map",
    "generation_top_k",
    "load_adapters",
    "load_pretrained_checkpoint",
    "lora_r_compressor",
    "max_new_tokens",
    "optimize_mem_tokens",
    "pure_inference",
    "stage2_retrieval_top_n",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
# Of those, what is an argument here.
ARGUMENT = {"generation_top_k": "num-selected", "max_new_tokens": "max-new-tokens"}


@dataclass(frozen=True)
class Reference:
    """A published checkpoint, read and checked as far as it can be without its base.

    Attributes:
        directory: its directory.
        config: its config.json.
        adapters: adapter name → tensor name → tensor, copies of embeddings among them.
        layers: the input embeddings and the output matrix, added tokens included.
    """

    directory: Path
    config: dict[str, Any]
    adapters: dict[str, dict[str, Tensor]]
    layers: dict[str, Tensor]

    @property
    def num_memory_tokens(self) -> int:
        """M: `doc_max_length // compr_rate` (clara.md 1.2)."""
        return int(self.config["doc_max_length"] // self.config["compr_rate"])

    @property
    def special_tokens(self) -> list[str]:
        """The tokens that the reference adds to its vocabulary, in the order of their ids (clara.md 1.2)."""
        memory = (
            [f"<MEM{m}>" for m in range(self.num_memory_tokens)] if self.config["different_mem_tokens"] else ["<MEM>"]
        )
        return [*memory, "<AE>", "<ENC>", "<SEP>"]

    @property
    def dtype(self) -> str:
        """The type that holds every tensor without loss."""
        tensors = [*self.layers.values(), *(t for tensors in self.adapters.values() for t in tensors.values())]
        return "bfloat16" if all(t.dtype == torch.bfloat16 for t in tensors) else "float32"


# --- reading ---------------------------------------------------------------------------------------------------------


def read_config(path: Path, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """A reference's config.json.

    Args:
        path: the file.
        ignored: unknown fields that the user declares to be without influence.

    Raises:
        InputError: missing, not JSON, or a field that is missing, unknown, or has a value that is not supported.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); expected the configuration beside {ADAPTERS}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); take an intact checkpoint") from error
    if not isinstance(config, dict):
        raise InputError(
            f"{path}: holds a {type(config).__name__}, expected a table of fields; take an intact checkpoint"
        )
    missing = [name for name in READ if name not in config]
    if missing:
        raise InputError(
            f"{path}: {', '.join(missing)} missing, expected in every published checkpoint; "
            "add what it was trained with"
        )
    for name in ("doc_max_length", "compr_rate", "lora_r"):
        if type(config[name]) is not int or config[name] < 1:
            raise InputError(
                f"{path}: {name} is {config[name]!r}, expected a whole number of at least 1; take an intact checkpoint"
            )
    if config["doc_max_length"] < config["compr_rate"]:
        raise InputError(
            f"{path}: doc_max_length {config['doc_max_length']} // compr_rate {config['compr_rate']} leaves no memory "
            "token; correct them"
        )
    for name in ("different_mem_tokens", "sep"):
        if type(config[name]) is not bool:
            raise InputError(f"{path}: {name} is {config[name]!r}, expected true or false; take an intact checkpoint")
    for name, supported in {**_ONLY, "training_stage": tuple(STAGE_OF)}.items():
        if name in config and config[name] not in supported:
            shown = " or ".join(json.dumps(value) for value in supported)
            raise InputError(
                f"{path}: {name} is {config[name]!r}, supported is {shown}; such a checkpoint cannot be imported"
            )
    known = {*READ, *_ONLY, *_LEFT, *PreTrainedConfig().to_dict(), *ignored}
    unknown = sorted(set(config) - known)
    if unknown:
        raise InputError(
            f"{path}: {unknown[0]} is {config[unknown[0]]!r}, an unknown field (unknown are {', '.join(unknown)}): "
            f"this program does not know whether it changes a number; if it does not, give --ignore {' '.join(unknown)}"
        )
    return config


def read_tensors(path: Path) -> Any:
    """What a `.pth` file holds, without running code from it.

    Raises:
        InputError: missing, damaged, or with anything but tensors and plain containers in it.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: missing, expected in every published checkpoint; give a directory with {CONFIG}, "
            f"{ADAPTERS} and {LAYERS}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own errors, of every kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as plain tensors ({reason[:200]}): it is damaged, or holds Python objects, "
            "whose code is not run; take an intact file that holds nothing but tensors"
        ) from error


def _check_tensors(path: Path, name: str, found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path}: {name or 'the file'} is a {type(found).__name__}, expected a table of tensors; "
            "take an intact checkpoint"
        )
    for key, tensor in found.items():
        where = f"{path}: {name}{'/' if name else ''}{key}"
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{where} is {str(tensor)[:80]!r}, a {type(tensor).__name__}, expected a tensor; "
                "take an intact checkpoint"
            )
        if not tensor.is_floating_point():
            raise InputError(
                f"{where} has type {tensor.dtype}, expected floating point; quantised checkpoints cannot be imported"
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{where} holds numbers that are not finite; take an intact checkpoint")
    return {str(key): tensor.detach() for key, tensor in found.items()}


def read_reference(directory: Path, ignored: Sequence[str] = ()) -> Reference:
    """Read a published checkpoint.

    Raises:
        InputError: as raised by `read_config` and `read_tensors`; an adapter that this program does not know, or
            without which there is no model.
    """
    config = read_config(directory / CONFIG, ignored)
    path = directory / ADAPTERS
    found = read_tensors(path)
    if not isinstance(found, Mapping):
        raise InputError(
            f"{path}: holds a {type(found).__name__}, expected adapter name → tensors; take an intact checkpoint"
        )
    unknown = [str(name) for name in found if name not in KNOWN_ADAPTERS]
    if unknown:
        raise InputError(
            f"{path}: unknown adapter {', '.join(unknown)}, known are {', '.join(KNOWN_ADAPTERS)}; "
            "take them out of the file, or rename them"
        )
    for name in ("encoder_adapter", "decoder_adapter"):
        if name not in found:
            raise InputError(
                f"{path}: {name} missing, found {', '.join(map(str, found)) or 'nothing'}; "
                "expected encoder_adapter and decoder_adapter "
                "(query_reasoner_adapter may be missing: it is a copy of the encoder then); "
                "take a checkpoint that was saved whole"
            )
    adapters = {str(name): _check_tensors(path, str(name), tensors) for name, tensors in found.items()}
    layers = _check_tensors(directory / LAYERS, "", read_tensors(directory / LAYERS))
    return Reference(directory, config, adapters, layers)


# --- what its fields are here ----------------------------------------------------------------------------------------


def model_settings(reference: Reference) -> Model:
    """Settings under which our model computes what the reference does with this checkpoint."""
    config = reference.config
    return Model(
        num_memory_tokens=reference.num_memory_tokens,
        max_document_tokens=config["doc_max_length"],
        # One more than a document: `cut_inputs` drops the eos of a question that fills it, like a document's.
        max_question_tokens=config["doc_max_length"] + 1,
        cut_inputs=True,
        overlapping_slots=not config["sep"],
        lora=Lora(rank=config["lora_r"], alpha=2.0 * config["lora_r"], dropout=0.1),
    )


def config_rows(reference: Reference, settings: Model) -> list[tuple[str, str, str]]:
    """Where the configuration's fields went, and the files that were not read."""
    config = reference.config
    fields = [
        ("doc_max_length", f"max_document_tokens {settings.max_document_tokens}"),
        ("compr_rate", f"num_memory_tokens {settings.num_memory_tokens}"),
        (
            "lora_r",
            f"lora.rank {settings.lora.rank}, alpha {settings.lora.alpha:g} (twice the rank, as the reference has it)",
        ),
        ("sep", f"overlapping_slots {str(settings.overlapping_slots).lower()}"),
        ("different_mem_tokens", "which rows are memory tokens"),
        ("training_stage", f"stage {STAGE_OF[config['training_stage']]}"),
    ]
    rows = [(CONFIG, f"{name} {json.dumps(config[name])}", to) for name, to in fields]
    for name in ("generation_top_k", "max_new_tokens"):
        if name in config:
            rows.append(
                (
                    CONFIG,
                    f"{name} {json.dumps(config[name])}",
                    f"left: an argument of each use (clara.ask --{ARGUMENT[name]})",
                )
            )
    used = {*READ, *ARGUMENT}
    rows.append((CONFIG, f"{len(set(config) - used)} other fields, without influence", "left"))
    others = sorted(p.name for p in reference.directory.iterdir() if p.name not in (CONFIG, ADAPTERS, LAYERS))
    return rows + [(name, "not part of the published format", "left") for name in others]
