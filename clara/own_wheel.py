"""The wheel of this package: built as a release is, for submit commands; or packed as it is, for a served model."""

import base64
import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from clara.errors import InputError

NAME = "clara-rag"
PACKAGES = ("clara", "pipelines", "training", "infra")
_BESIDE = ("pyproject.toml", "README.md", "LICENSE")
_MIN_SETUPTOOLS = 77
_WHEEL = "Wheel-Version: 1.0\nGenerator: clara\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
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


def build_wheel(output: Path) -> Path:
    """Build the wheel into a folder, from a clean copy of the tree, without leftovers of earlier builds.

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


def pack_wheel(output: Path) -> Path:
    """Pack the packages as they are here, in a checkout or installed, without pip and setuptools.

    A hash of the files is added to the version, as `0.1.0+src.1b9f60c2a7d4`: no package index has such a version, and
    other sources are another version.

    Args:
        output: folder of the wheel, created on demand.
    """
    root, own = Path(__file__).resolve().parents[1], importlib.metadata.distribution(NAME)
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(_sources(root))}
    public = own.version.partition("+")[0]
    version = f"{public}+src.{hashlib.sha256(''.join(map(_record, contents.items())).encode()).hexdigest()[:12]}"
    stem = f"{NAME.replace('-', '_')}-{version}"
    # Beside the sources of an editable install there may be an egg-info, whose file has another name.
    described = own.read_text("METADATA") or own.read_text("PKG-INFO") or ""
    metadata = described.replace(f"\nVersion: {own.version}\n", f"\nVersion: {version}\n", 1)
    about = {"METADATA": metadata, "WHEEL": _WHEEL, "entry_points.txt": own.read_text("entry_points.txt") or ""}
    contents |= {f"{stem}.dist-info/{name}": text.encode() for name, text in about.items()}
    record = f"{stem}.dist-info/RECORD"
    output.mkdir(parents=True, exist_ok=True)
    wheel = output / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
        file.writestr(record, "".join(map(_record, contents.items())) + f"{record},,\n")
    return wheel


def _sources(root: Path) -> set[Path]:
    """Code of the packages, and the data that pyproject names; what is installed has nothing else."""
    project = root / "pyproject.toml"
    if not project.is_file():
        every = (path for package in PACKAGES for path in (root / package).rglob("*"))
        return {path for path in every if path.is_file() and "__pycache__" not in path.parts}
    data = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    patterns = [(package, pattern) for package in PACKAGES for pattern in ("**/*.py", *data.get(package, ()))]
    return {path for package, pattern in patterns for path in (root / package).glob(pattern)}


def _record(entry: tuple[str, bytes]) -> str:
    """The line of RECORD for a file."""
    name, content = entry
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"
