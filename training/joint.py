"""Stage `joint`: retrieval and generation trained by one loss, over MEMORY.

    python training/joint.py --config infra/configs/demo.toml --set checkpoint=DIR --set questions=DIR \\
        --set memory=DIR --set index=DIR --set output=DIR
    clara submit ray joint --config FILE --set memory=ABSOLUTE_PATH …   (on a cluster)

Makes OUTPUT/checkpoint, OUTPUT/report.json, and with joint.refresh.policy = full or incremental OUTPUT/memory-v1,
OUTPUT/index-v1 and so on.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python puts training/ first on the path, where a module could shadow a library.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Callable

from clara.config.flags import Command, add_setting
from clara.config.tree import JOINT, Config
from clara.errors import InputError, command_line
from clara.model.artefact import check_given
from clara.storage.folders import atomic_write
from clara.storage.manifest import up_to_date
from training.registry.resolve import local_checkpoint
from training.run.checks import check
from training.run.recipe import RunPaths, absolute, finished, plan, run_paths


def launcher(config: Config) -> Callable[[Config, RunPaths, bool], str]:
    """The function that trains, up to the CHECKPOINT and the last re-encoding.

    Imported when chosen: Ray and DeepSpeed take seconds to import, and one process needs neither.
    """
    if config.launch.launcher == "local":
        from training.launch.one_process import train

        return train
    try:
        from training.launch.ray_train import train
    except ModuleNotFoundError as error:
        raise InputError(
            f"launch.launcher 'ray': {error.name} is not installed; run: pip install 'clara-rag[cluster]', "
            "or train in one process with --launcher local"
        ) from error
    return train


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("training/joint.py", __doc__, uses=JOINT)
    add_setting(parser, "launch.launcher")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration, the hashes of the inputs and where it would write; stop",
    )
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    config: Config = options.config
    config = config.model_copy(update={"checkpoint": local_checkpoint(config.checkpoint, config.tracking.uri)})
    check(config)
    check_given(config.checkpoint, config, [override.key for override in options.overrides])
    config = absolute(config)
    where = run_paths(config)
    if options.dry_run:
        shown = {
            "config": config.part(JOINT),
            "inputs": where.recipe["inputs"],
            "plan": plan(config),
            "run": str(where.run),
        }
        print(json.dumps(shown, indent=1))
        return 0
    if finished(config, where):
        print(f"{where.checkpoint}: up to date")
        return 0
    train(config, where)
    return 0


def train(config: Config, where: RunPaths) -> None:
    """Train what is missing, and write the report.

    Args:
        config: the run's, with absolute paths.
        where: its directories.

    Raises:
        InputError: an input does not fit; or the last re-encoding failed.
    """
    from training.registry.run_log import tracked
    from training.run.last_encoding import final_refresh_due, finished_run  # imports torch, as the next
    from training.run.last_fit import last_fit_due
    from training.run.report import figures, finish, made
    from training.run.run import preflight

    preflight(config, where)
    with tracked(config, where.run.name, where.metrics) as tracker:
        trained, why = up_to_date(where.checkpoint, "CHECKPOINT", where.recipe), ""
        found = finished_run(config, where) if trained else None
        if found is None or final_refresh_due(config, found) or last_fit_due(config, where, found):
            why = launcher(config)(config, where, trained)
        report = finish(config, where)
    if tracker is not None:
        tracker.finish(where.report, where.metrics, where.run / "curves", made(where, report), figures(report))
        atomic_write(where.tracked, json.dumps({"uri": config.tracking.uri, "run_id": tracker.run_id}) + "\n")
    if why:
        if tracker is not None:
            tracker.fail()
        raise InputError(
            f"{where.checkpoint}: CHECKPOINT after {report['steps']} steps is there, report {where.report} too, but "
            f"MEMORY {report['memory']} lags it by "
            f"{report['memory_lag_steps']} steps: the last re-encoding (joint.refresh.final) failed "
            f"({why}); run the same command again: it "
            "makes that alone"
        )
    print(
        f"{where.checkpoint}: CHECKPOINT after {report['steps']} steps of joint, "
        f"{report['questions_per_second']:.2f} questions/s; "
        f"MEMORY {report['memory']}, INDEX {report['index']}; report {where.report}"
    )


if __name__ == "__main__":
    command_line(main)
