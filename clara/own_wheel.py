"""One wheel of this source tree: what submit commands stage, and what a served model's environment installs."""

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from clara.errors import InputError

PACKAGES = ("clara", "pipelines", "training", "infra")
_BESIDE = ("pyproject.toml", "README.md", "LICENSE")
_VERSION = re.compile(r'^version = "([^"+]+)"$', re.MULTILINE)
_MIN_SETUPTOOLS = 77
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", "start")


def source_tree() -> Path:
    """The checkout that contains this module.

    Raises:
        InputError: it is an installed package, which has no recipe for a wheel.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        raise InputError(
            f"{root}: has no pyproject.toml, so no wheel can be built of it; run from a checkout, or give a wheel "
            "with --wheel"
        )
    return root


def build_wheel(output: Path, *, named_by_content: bool = False) -> Path:
    """Build the wheel into a folder, from a clean copy of the tree, without leftovers of earlier builds.

    Args:
        output: the folder, created on demand.
        named_by_content: add a hash of the sources to the version, as `0.1.0+src.1b9f60c2a7d4`: no package index has
            such a version, and other sources are another version.

    Raises:
        InputError: the packages that build it are not there, or it fails.
    """
    root = source_tree()
    try:
        found = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < _MIN_SETUPTOOLS:
        raise InputError(
            f"setuptools {found}: a wheel is built with {_MIN_SETUPTOOLS} or newer; "
            f"pip install 'setuptools>={_MIN_SETUPTOOLS}'"
        )
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        copy, made = Path(folder) / "tree", Path(folder) / "wheels"
        for package in PACKAGES:
            shutil.copytree(root / package, copy / package, ignore=_NOT_COPIED)
        for file in _BESIDE:
            shutil.copy(root / file, copy / file)
        if named_by_content:
            _name_by_content(copy)
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(made),
            str(copy),
        ]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise InputError(
                f"{root}: no wheel could be built: {built.stderr.strip().splitlines()[-1:]}; run {' '.join(command)} "
                "to see why"
            )
        wheel = next(made.glob("*.whl"))
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, output / wheel.name)).resolve()


def _name_by_content(tree: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(tree)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    project = tree / "pyproject.toml"
    named = _VERSION.sub(rf'version = "\1+src.{digest.hexdigest()[:12]}"', project.read_text(encoding="utf-8"))
    project.write_text(named, encoding="utf-8")
