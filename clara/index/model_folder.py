"""The folder of an embedding model, known by its content. It is read without a model library."""

from pathlib import Path

from clara.errors import InputError
from clara.storage.folders import sha256_file
from clara.storage.manifest import hash_of

_MODULES = "modules.json"


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
