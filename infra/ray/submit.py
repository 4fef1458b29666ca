"""Submit training to a Ray cluster, with the packages of this checkout and nothing else of its folder.

    python -m infra.ray.submit --address http://head:8265 joint --config infra/configs/mistral_7b.toml --set
    memory=/data/MEMORY …

Artefacts, environments and results are left out. Paths of artefacts must be absolute, or URLs. See infra/ray/README.md.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from clara.config.flags import Command
from clara.config.tree import Config
from clara.errors import InputError, command_line
from clara.own_wheel import PACKAGES
from infra.submit.job import parsed
from training.run.checks import check_submitted

JOBS = ("joint", "pretrain")
MAX_BYTES = 100 * 2**20
"""Ray's dashboard takes no larger request, and a working directory is one request."""
_ROOT = Path(__file__).resolve().parents[2]
_NOT_SENT = shutil.ignore_patterns("__pycache__", "*.pyc", "results", "start")
_CONFIGS = "submitted"
_NUM_NAMED = 5


def parser() -> Command:
    """The command line."""
    parse = Command("infra.ray.submit", __doc__)
    parse.add_argument("--address", default="", metavar="URL", help="of Ray's dashboard (default: as ray job finds it)")
    parse.add_argument("--submission-id", default="", metavar="NAME", help="name of the job (default: Ray's choice)")
    parse.add_argument(
        "--include", action="append", default=[], metavar="PATH", help="send this file or folder of the checkout too"
    )
    parse.add_argument("--no-wait", action="store_true", help="end when the job is submitted; else follow its log")
    parse.add_argument("--dry-run", action="store_true", help="print the size and the command, and send nothing")
    parse.add_argument("job", choices=JOBS, help="the stage: training/JOB.py")
    parse.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="…", help="its own; python training/JOB.py --help lists them"
    )
    return parse


def stage(target: Path, include: Sequence[str] = ()) -> None:
    """Copy what a job needs into an empty folder: the packages, without results, and what is named.

    Args:
        target: the folder.
        include: files and folders of the checkout.

    Raises:
        InputError: one of `include` is missing, or outside of the checkout.
    """
    for package in PACKAGES:
        shutil.copytree(_ROOT / package, target / package, ignore=_NOT_SENT)
    for name in include:
        path = (_ROOT / name).resolve()
        if not path.exists() or not path.is_relative_to(_ROOT):
            raise InputError(f"--include {name}: no such file or folder in {_ROOT}; give a path relative to that")
        place = target / path.relative_to(_ROOT)
        if path.is_dir():
            shutil.copytree(path, place, dirs_exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)


def ship_config(file: str, arguments: Sequence[str], target: Path) -> list[str]:
    """The job's arguments with its `--config` file at a place inside the working directory, where it is copied.

    Args:
        file: the file, relative to the current directory or absolute; empty: none.
        arguments: as typed.
        target: the working directory.
    """
    if not file:
        return list(arguments)
    place = Path(_CONFIGS) / Path(file).name
    (target / place).parent.mkdir(exist_ok=True)
    shutil.copy(file, target / place)
    found = list(arguments)
    for number, word in enumerate(found):
        if word == "--config":
            found[number + 1] = str(place)
        elif word.startswith("--config="):
            found[number] = f"--config={place}"
    return found


def checked_size(folder: Path) -> int:
    """Bytes of a working directory; Ray packs it without compression.

    Raises:
        InputError: it is larger than Ray takes; names the largest files.
    """
    sizes = {file.relative_to(folder): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    total = sum(sizes.values())
    if total < MAX_BYTES:
        return total
    largest = sorted(sizes, key=lambda file: sizes[file], reverse=True)[:_NUM_NAMED]
    named = ", ".join(f"{file} {sizes[file] / 2**20:.1f} MiB" for file in largest)
    raise InputError(
        f"working directory: {total / 2**20:.1f} MiB, Ray takes less than {MAX_BYTES / 2**20:.0f}; the largest files: "
        f"{named}; move them out of the packages or leave out --include, and name them by absolute path or URL"
    )


def _main(job: str) -> Callable[[], Command]:
    """The parser of a job's own command line."""
    if job == "joint":
        from training.joint import parser as joint

        return joint
    from training.pretrain import parser as pretrain

    return pretrain


def own_gpus(job: str, config: Config) -> int:
    """GPUs that Ray reserves for the command itself: one where it trains in its own process, else the ranks have them.

    Ray hides all GPUs from a command that has none reserved.
    """
    alone = job == "pretrain" or config.launch.launcher == "local"
    return int(alone and config.launch.gpu)


def main(argv: Sequence[str]) -> int:
    """Check the job's arguments, collect what it needs, and hand it to `ray job submit`."""
    args = parsed(parser(), argv, JOBS)
    options = _main(args.job)().parse_args(args.arguments)
    check_submitted(options.config)
    with tempfile.TemporaryDirectory(prefix="submit-") as name:
        folder = Path(name)
        stage(folder, args.include)
        arguments = ship_config(options.config_file or "", args.arguments, folder)
        size = checked_size(folder)
        command = ["ray", "job", "submit", *([f"--address={args.address}"] if args.address else [])]
        command += [f"--submission-id={args.submission_id}"] if args.submission_id else []
        gpus = own_gpus(args.job, options.config)
        command += [f"--entrypoint-num-gpus={gpus}"] if gpus else []
        command += ["--no-wait"] if args.no_wait else []
        command += [f"--working-dir={folder}", "--", "python", f"training/{args.job}.py", *arguments]
        print(f"working directory: {size / 2**20:.1f} MiB of {', '.join([*PACKAGES, *args.include])}", flush=True)
        if args.dry_run:
            print(shlex.join(command))
            return 0
        program = Path(sys.executable).with_name("ray")
        if not program.is_file():
            raise InputError(f"{program}: no such program; run: pip install 'clara-rag[cluster]'")
        return subprocess.run([str(program), *command[1:]], check=False).returncode


if __name__ == "__main__":
    command_line(main)
