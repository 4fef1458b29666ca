"""Ask pip which pinned versions of pyproject have a wheel, for each supported Python on Linux and for macOS on arm64.

python -m infra.wheels [--target 3.13:macosx_14_0_arm64 …]
"""

import re
import subprocess
import sys
import tempfile
import tomllib

from clara.config.flags import plain_parser
from clara.errors import command_line
from infra.steps import ROOT

LINUX, MACOS = "manylinux_2_28_x86_64", "macosx_14_0_arm64"
TARGETS = [f"{python}:{platform}" for platform in (LINUX, MACOS) for python in ("3.11", "3.12", "3.13")]
# Published as sources only.
WITHOUT_WHEELS = {"deepspeed", "pyspark"}
_MISSING = re.compile(r"No matching distribution found for ([\w.-]+)")


def pins() -> list[str]:
    """Pinned requirements of pyproject with all extras but `gpu`, which is for Linux with CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [pin for name, pins in project["optional-dependencies"].items() if name != "gpu" for pin in pins]
    return sorted({pin for pin in (*project["dependencies"], *extras) if "==" in pin})


def without_wheel(requirements: list[str], target: str) -> set[str]:
    """Names of the packages that have no wheel of the pinned version for a target "PYTHON:PLATFORM".

    Dependencies are not followed: pip evaluates their environment markers for the machine that it runs on.

    Raises:
        RuntimeError: pip fails for another reason, for example without a network.
    """
    python, _, platform = target.partition(":")
    missing: set[str] = set()
    # pip expands a macOS tag to those of earlier versions, a manylinux tag not.
    platforms = [platform, "manylinux2014_x86_64", "manylinux_2_17_x86_64"] if platform == LINUX else [platform]
    while True:
        asked = [pin for pin in requirements if re.split(r"[\[=;]", pin)[0] not in missing]
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
            command += ["--only-binary=:all:", "--quiet", "--target", folder, "--python-version", python]
            command += [part for tag in platforms for part in ("--platform", tag)]
            done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return missing
        names = {re.split(r"[\[=]", name)[0] for name in _MISSING.findall(done.stderr)}
        if not names - missing:
            raise RuntimeError(f"pip for {target}: {done.stderr[-2000:]}")
        missing |= names


def main(argv: list[str]) -> int:
    """The command line; 1 if a pin has no wheel that should have one."""
    parser = plain_parser("infra.wheels", __doc__)
    parser.add_argument(
        "--target", action="append", metavar="PYTHON:PLATFORM", help=f"ask for this one only (default: {TARGETS})"
    )
    args = parser.parse_args(argv)
    unexpected = False
    for target in args.target or TARGETS:
        missing = without_wheel(pins(), target)
        unexpected |= bool(missing - WITHOUT_WHEELS)
        print(f"{target}: {len(pins()) - len(missing)} wheels, sources only: {', '.join(sorted(missing)) or 'none'}")
    return int(unexpected)


if __name__ == "__main__":
    command_line(main)
