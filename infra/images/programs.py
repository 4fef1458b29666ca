"""The programs of requirements/tools.txt, installed apart from the project."""

import shutil

from clara.errors import InputError


def program(name: str) -> str:
    """The path of a program.

    Raises:
        InputError: it is not on the PATH.
    """
    found = shutil.which(name)
    if found is None:
        raise InputError(f"{name}: no such program on the PATH; pip install -r requirements/tools.txt, or make tools")
    return found
