"""What the submit commands of all engines share: a job's name and arguments, and the wheel that goes with it."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from clara.config.flags import Command
from clara.errors import InputError
from clara.own_wheel import build_wheel


def submit_parser(name: str, description: str | None, jobs: Sequence[str]) -> Command:
    """A command line that ends with a job and its arguments; see `parsed`."""
    parse = Command(f"infra.{name}.submit", description)
    parse.add_argument(
        "--wheel", default="", metavar="FILE", help="stage this wheel (default: one built of this checkout)"
    )
    parse.add_argument("--dry-run", action="store_true", help="print the command that would run, and stop")
    parse.add_argument("job", choices=jobs, help="the pipeline")
    parse.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="…",
        help="its own arguments; python -m pipelines.JOB --help lists them",
    )
    return parse


def parsed(parse: Command, argv: Sequence[str], jobs: Sequence[str]) -> argparse.Namespace:
    """Parse what is before the job's name; what follows it is the job's, `--config` and `--set` too."""
    end = next((position for position, word in enumerate(argv, 1) if word in jobs), len(argv))
    args = parse.parse_args(argv[:end])
    args.arguments = list(argv[end:])
    return args


def run_job(args: argparse.Namespace, engine: Sequence[str]) -> int:
    """Run the job's command with the engine's options and the wheel.

    Args:
        args: of `submit_parser`.
        engine: options that the engine needs.

    Raises:
        InputError: the wheel can't be found or built, or of the job.
    """
    if args.dry_run:
        staged = args.wheel or "(a wheel of this checkout)"
        print(
            " ".join(["python", "-m", f"pipelines.{args.job}", *args.arguments, *engine, f"--extra_package={staged}"])
        )
        return 0
    if args.wheel and not Path(args.wheel).is_file():
        raise InputError(f"--wheel {args.wheel}: no such file; leave it out to build one")
    with tempfile.TemporaryDirectory(prefix="submit-") as folder:
        wheel = args.wheel or build_wheel(Path(folder))
        return _main(args.job)([*args.arguments, *engine, f"--extra_package={wheel}"])


def _main(job: str) -> Callable[[list[str]], int]:
    """The job's command line, imported on use: Beam takes seconds."""
    if job == "build_memory":
        from pipelines.build_memory.command import main as build_memory

        return build_memory
    from pipelines.score_utilities.command import main as score_utilities

    return score_utilities
