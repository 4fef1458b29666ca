"""An archive for a borrowed GPU: the sources, and the wheels that a machine with torch and transformers lacks.

python -m benchmarks.gpu_pack [--output gpu.tar.gz] [--no-faiss]

The machine needs Python 3.12 with torch, transformers and pyarrow, and no network. There:

    tar xzf gpu.tar.gz && cd clara-gpu && sh run.sh [--parts …]

`run.sh` unpacks the wheels beside the sources, installs nothing, and runs `benchmarks.gpu`. Versions are those of
pyproject.toml. The archive has at most 60 MiB.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line

ROOT = Path(__file__).resolve().parents[1]
FOLDER, PYTHON, MOST_BYTES = "clara-gpu", "3.12", 60 * 2**20
SOURCES = ("clara", "pipelines", "training", "infra", "benchmarks")
_RESULTS = ("infra/results/plan/results.json",)  # of all results, what the sources read
WITH_DEPENDENCIES, ALONE = ("pydantic",), ("tenacity", "zstandard")
"""Packages that are packed, with what they need and by themselves; their versions are those of pyproject.toml."""
FAISS = "faiss-gpu-cu12"  # has the code for CPUs too; its CUDA libraries are those that torch brings
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
RUN = """#!/bin/sh
# Unpacks the wheels beside the sources and runs the parts; python3.12 with torch and transformers must be there.
set -e
PYTHON=${PYTHON:-python3}
for wheel in wheels/*.whl; do $PYTHON -m zipfile -e "$wheel" packages; done
PYTHONPATH=$PWD:$PWD/packages exec $PYTHON -m benchmarks.gpu "$@"
"""


def pinned(names: Sequence[str]) -> list[str]:
    """Requirements of packages, as pyproject.toml pins them.

    Raises:
        InputError: one is not pinned there.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    pins = {pin.partition("==")[0]: pin for pin in every if "==" in pin}
    if missing := [name for name in names if name not in pins]:
        raise InputError(f"pyproject.toml: {missing[0]} has no pinned version; add one, or leave it out of the archive")
    return [pins[name] for name in names]


def sources(root: Path = ROOT) -> list[Path]:
    """Files that the parts read, relative to the root: modules, configurations, and the constants of a plan."""
    kinds = (".py", ".toml")
    found = [path for top in SOURCES for path in sorted((root / top).rglob("*")) if path.suffix in kinds]
    return [*(path.relative_to(root) for path in found), *map(Path, _RESULTS)]


def download(requirements: Sequence[str], folder: Path, *, dependencies: bool) -> None:
    """Wheels of requirements for Python 3.12 on Linux.

    Raises:
        InputError: pip found none.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--python-version", PYTHON, "--only-binary", ":all:", "--dest", str(folder)]
    command += [part for platform in _PLATFORMS for part in ("--platform", platform)]
    command += [*([] if dependencies else ["--no-deps"]), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"pip download {' '.join(requirements)}: {reason}; check the network and the pins")


def pack(archive: Path, wheels: Path) -> int:
    """Write the archive. Returns its bytes.

    Raises:
        InputError: it has more than 60 MiB.
    """
    with tarfile.open(archive, "w:gz") as tar:
        for path in sources():
            tar.add(ROOT / path, f"{FOLDER}/{path}")
        for wheel in sorted(wheels.glob("*.whl")):
            tar.add(wheel, f"{FOLDER}/wheels/{wheel.name}")
        script = tarfile.TarInfo(f"{FOLDER}/run.sh")
        script.size, script.mode = len(RUN.encode()), 0o755
        tar.addfile(script, io.BytesIO(RUN.encode()))
    size = archive.stat().st_size
    if size > MOST_BYTES:
        raise InputError(f"{archive}: {size / 2**20:.0f} MiB, expected at most 60; leave FAISS out with --no-faiss")
    return size


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    found = plain_parser("benchmarks.gpu_pack", __doc__)
    found.add_argument("--output", default="gpu.tar.gz", metavar="FILE", help="the archive (default: gpu.tar.gz)")
    found.add_argument("--no-faiss", dest="faiss", action="store_false", help=f"without {FAISS}, 46 MiB")
    found.add_argument("--dry-run", action="store_true", help="print what would be packed, and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    whole, alone = pinned(WITH_DEPENDENCIES), pinned([*ALONE, *([FAISS] if options.faiss else [])])
    if options.dry_run:
        print(f"{options.output}: {len(sources())} files of {', '.join(SOURCES)}; wheels of {', '.join(whole + alone)}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        download(whole, Path(folder), dependencies=True)
        download(alone, Path(folder), dependencies=False)
        size = pack(Path(options.output), Path(folder))
    print(f"{options.output}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    command_line(main)
