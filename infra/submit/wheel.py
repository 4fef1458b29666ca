"""One wheel of this source tree: what the submit commands stage, and what a worker's environment installs.

python -m infra.submit.wheel --output dist
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line

PACKAGES = ("clara", "pipelines", "training", "infra")
_MIN_SETUPTOOLS = 77
_NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", "start")


def source_tree() -> Path:
    """The checkout that contains this module.

    Raises:
        InputError: it is an installed package, which has no recipe for a wheel.
    """
    root = Path(__file__).resolve().parents[2]
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
        for file in ("pyproject.toml", "README.md", "LICENSE"):
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


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parse = plain_parser("infra.submit.wheel", __doc__)
    parse.add_argument(
        "--output", type=Path, default=Path("dist"), metavar="DIR", help="where the wheel goes (default: %(default)s)"
    )
    print(build_wheel(parse.parse_args(argv).output))
    return 0


if __name__ == "__main__":
    command_line(main)
