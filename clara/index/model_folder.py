"""The folder of an embedding model, known by its content. It is read without a model library."""

import json
import re
from pathlib import Path

from clara.errors import InputError
from clara.storage.folders import sha256_file
from clara.storage.manifest import hash_of

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_FAMILIES = re.compile(r"(?<![a-z])(e5|bge|nomic|arctic|instructor|mxbai|uae|stella|qwen)(?![a-z])")
"""Names of models whose cards ask for prompts."""


def folder_hash(folder: str) -> str:
    """Hash of the files of a model.

    Raises:
        InputError: it is no sentence-transformers folder.
    """
    path = Path(folder)
    if not (path / _MODULES).is_file():
        raise InputError(
            f"--dense-model {folder!r}: no {_MODULES} in it; expected a sentence-transformers folder on this machine "
            "(nothing is downloaded)"
        )
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")
    )
    return hash_of([[str(file.relative_to(path)), sha256_file(file)] for file in files])


def declared_prompts(folder: str) -> tuple[str, str]:
    """What a model's own configuration puts in front of questions and of texts; empty where it declares nothing.

    Raises:
        InputError: its configuration cannot be read.
    """
    path = Path(folder) / _SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        prompts = {name: str(text) for name, text in (settings.get("prompts") or {}).items() if text}
        default = prompts.get(str(settings.get("default_prompt_name")), "")
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); copy the model's folder again") from error
    document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), default)
    return prompts.get("query", default), document


def wants_prompts(folder: str) -> bool:
    """Whether a model's folder, or what it was made from, is called like a family that is trained with prompts."""
    try:
        made_from = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("_name_or_path", "")
    except (ValueError, AttributeError, OSError):
        made_from = ""
    return any(_FAMILIES.search(name.lower()) for name in (Path(folder).name, str(made_from)))
