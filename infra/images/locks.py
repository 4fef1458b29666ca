"""Lock what an image installs: every package with its version and the hashes of its files, by uv.

    python -m infra.images.locks

Writes requirements/STAGE.txt for each stage of the Dockerfile, and requirements/STAGE-cpu.txt without torch and what
CUDA needs, for images whose torch comes from PyTorch's index of CPU wheels. A lock names no index.
"""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clara.config.flags import plain_parser
from clara.errors import InputError, command_line
from clara.own_wheel import source_tree
from infra.images.programs import program

STAGES = {"train": ("aws", "beam", "cluster", "gcp", "serve", "train"), "beam": ("beam", "gcp")}
"""Extras of each stage of the Dockerfile that installs."""
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
OF_CUDA = re.compile(r"torch|triton|(?:nvidia|cuda)-[\w-]+")
"""Names that a CPU image leaves out: torch, which it installs itself, and what only torch with CUDA needs."""
_LINE = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[\w,-]+\])?==([^\s;\\]+)", re.MULTILINE)


def versions(text: str) -> dict[str, str]:
    """Versions of a lock's packages, by name."""
    return dict(_LINE.findall(text))


def locked(root: Path, extras: Sequence[str], left_out: Sequence[str] = ()) -> str:
    """The lock of some extras.

    Args:
        root: the checkout.
        extras: of pyproject.toml.
        left_out: packages that are not written.

    Raises:
        InputError: uv is missing, or resolves nothing.
    """
    command = [program("uv"), "pip", "compile", "--quiet", "--generate-hashes", "--no-header"]
    command += ["--no-emit-index-url", "--no-annotate", "--python-version", PYTHON, "--python-platform", PLATFORM]
    for extra in extras:
        command += ["--extra", extra]
    for name in left_out:
        command += ["--no-emit-package", name]
    with tempfile.TemporaryDirectory(prefix="lock-") as folder:
        file = Path(folder) / "lock.txt"
        command += ["--output-file", str(file), str(root / "pyproject.toml")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = " ".join(done.stderr.split())
            raise InputError(f"uv: {reason}; correct the pins of pyproject.toml, or try again where the index answers")
        return file.read_text(encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """The command line."""
    parse = plain_parser("infra.images.locks", __doc__)
    parse.parse_args(argv)
    root = source_tree()
    for stage, extras in STAGES.items():
        whole = locked(root, extras)
        of_cuda = [name for name in versions(whole) if OF_CUDA.fullmatch(name)]
        for name, text in ((stage, whole), (f"{stage}-cpu", locked(root, extras, of_cuda))):
            first = f"# Stage {name} of the Dockerfile. Made by python -m infra.images.locks (make lock)."
            (root / "requirements" / f"{name}.txt").write_text(f"{first}\n{text}", encoding="utf-8")
            print(f"requirements/{name}.txt: {len(versions(text))} packages")
    return 0


if __name__ == "__main__":
    command_line(main)
