"""The folder of a backbone: hashes of its weights and tokenizer, its tokenizer and its LM."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.errors import InputError
from clara.storage.cache import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@functools.lru_cache(maxsize=8)
def _hash_files(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def weights_hash(folder: str | os.PathLike[str]) -> str:
    """Sha256 over the weight files of a model folder, in name order: what `backbone` means in a fingerprint."""
    files = sorted(local_folder(folder).glob("*.safetensors"))
    if not files:
        raise InputError(
            f"{folder}: no *.safetensors there; give a folder that holds a causal LM in the transformers format, "
            "without pickle"
        )
    return _hash_files(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


def tokenizer_hash(folder: str | os.PathLike[str]) -> str:
    """Sha256 over a folder's `tokenizer.json`: what `tokenizer` means in a fingerprint."""
    path = local_folder(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder}: no tokenizer.json; a fast tokenizer is needed")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy the model's folder again") from error
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def load_tokenizer(folder: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """The fast tokenizer of a model folder, read from that folder only."""
    from transformers import AutoTokenizer  # takes a second, which hashes need not wait for

    folder = local_folder(folder)
    if not (Path(folder) / "tokenizer.json").is_file():
        raise InputError(f"{folder}: no tokenizer.json; give a model folder with a fast tokenizer")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises plain ones for what it cannot read
        raise InputError(f"{folder}: its tokenizer cannot be read ({error}); copy the model's folder again") from error


def load_lm(folder: str | os.PathLike[str], name: str, *, dtype: str, **options: Any) -> "PreTrainedModel":
    """The causal LM of a model folder, read from that folder only, with every weight that its configuration asks for.

    Args:
        folder: on this machine.
        name: of the folder in messages, with its setting.
        dtype: `float32` or `bfloat16`.
        options: more of transformers' `from_pretrained`.

    Raises:
        InputError: no config.json, weights that transformers can't read, or some that are missing: transformers would
            draw those at random.
    """
    import torch  # both take seconds, which hashes need not wait for
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    if not (Path(folder) / "config.json").is_file():
        raise InputError(
            f"{name}: no config.json there; give a folder that holds a causal LM in the transformers format"
        )
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        lm, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,  # without it transformers asks on the terminal
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        chosen = ", ".join(f"{option} {value!r}" for option, value in ({"dtype": dtype} | options).items())
        raise InputError(f"{name}: cannot be loaded with {chosen}: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise InputError(
            f"{name}: {len(missing)} weights that its config.json asks for are not in its "
            f"*.safetensors (first: {missing[0]}); copy the model's folder again"
        )
    return lm
