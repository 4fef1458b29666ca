"""The folder of a backbone: hashes of its weights and tokenizer, and its tokenizer."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clara.errors import InputError
from clara.storage.cache import local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
