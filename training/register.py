"""Register a trained system in MLflow: a run with what was done, and a model version that answers.

python -m training.register --name MODEL --checkpoint DIR --memory DIR --index DIR --evaluation DIR --system NAME
--tracking-uri sqlite:///PATH

The version holds the CHECKPOINT, and pointers (URI and hash) to MEMORY, INDEX and LM, never their bytes.
"""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from clara.model.artefact import Checkpoint
from clara.storage.artefact import Artefact
from clara.storage.manifest import hash_of
from clara.storage.paths import is_url
from clara.tracking.names import flatten
from clara.tracking.run_log import Run, RunLog, failing
from training.evaluation.files import REPORT
from training.loop.lines import read
from training.refresh.retention import pin
from training.registry.curves import draw
from training.registry.evaluation_log import metrics_of
from training.registry.model_folder import MODEL, check_wheel, save_model
from training.registry.registration import CARD, EVALUATION, TAG, Registration
from training.registry.store import answers, check_names, open_run_log, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


def registered(client: "MlflowClient", name: str, identity: str) -> "ModelVersion | None":
    """The version of a model that was registered from the same artefacts, if there is one."""
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(TAG) == identity and version.status == "READY":
            return version
    return None


def metrics_beside(checkpoint: Checkpoint) -> Path | None:
    """The metrics.jsonl of the run that made a checkpoint, if it is still beside it."""
    recipe = checkpoint.manifest["made_by"]["recipe"]
    path = checkpoint.folder.resolve().parent / f"run-{hash_of(recipe)[:12]}" / "metrics.jsonl"
    return path if path.is_file() else None


def log_run(log: RunLog, registration: Registration, metrics: Path | None, pictures: list[Path]) -> None:
    """Log parameters, metrics by step, the evaluation's figures and files, and pictures."""
    recipe, evaluation = registration.checkpoint.manifest["made_by"]["recipe"], registration.evaluation
    report = json.loads(evaluation.file(REPORT).read_text(encoding="utf-8"))
    own = {name: of for name, of in report["systems"].items() if name == registration.system}
    steps = read(metrics) if metrics is not None else {}
    log.parameters(flatten(recipe))
    log.metrics({0: metrics_of({"systems": own})})
    log.metrics(steps)
    with tempfile.TemporaryDirectory() as folder:
        for curve in draw(steps, Path(folder)):
            log.file(curve, "curves")
    for entry in evaluation.manifest["files"]:
        log.file(evaluation.file(entry["path"]), EVALUATION)
    for picture in pictures:
        log.file(picture, "pictures")


def register(
    uri: str,
    experiment: str,
    registration: Registration,
    metrics: Path | None,
    pictures: list[Path],
    licences: Mapping[str, str],
    wheel: Path | None = None,
) -> "ModelVersion":
    """Register a system with its model card, or find that it has been; returns its version."""
    from training.registry.card import card

    registration.check()
    text = card(registration, licences)
    identity, tags, config = registration.identity(), registration.tags(), registration.model_config()
    client = open_store(uri)
    existing = registered(client, registration.name, identity)
    if existing is not None:
        logger.info("%s version %s is this very system", registration.name, existing.version)
        return existing
    # Ahead of the registration: a run that still makes versions must not delete one in between.
    for artefact in (registration.memory, registration.index):
        if artefact is None or is_url(artefact.name):
            continue  # no run makes or deletes versions in a bucket
        try:
            pin(artefact.folder, f"model {registration.name} in {uri}")
        except InputError as error:
            logger.warning(
                "%s: cannot be pinned, so a training run that still makes versions there may delete it (%s)",
                artefact.name,
                error,
            )
    log = open_run_log(uri)
    run = Run(experiment, f"register {registration.name}", {**tags, TAG: identity}, key=TAG)
    logged = log.begin(run)
    with failing(log):
        if not logged:
            log_run(log, registration, metrics, pictures)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder) / MODEL, log.run_id, registration, config, wheel)
            (Path(folder) / CARD).write_text(text, encoding="utf-8")
            client.log_artifacts(log.run_id, folder)
        log.finish()
    return new_version(client, registration.name, log.run_id, {**tags, TAG: identity})


def new_version(client: "MlflowClient", name: str, run_id: str, tags: Mapping[str, str]) -> "ModelVersion":
    """Register the model among a run's artifacts.

    Its files are artifacts of the run, and no logged model: servers of MLflow 2 have none.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL}"
    about = f"Its model card is {CARD} among the artifacts of run {run_id}."
    return client.create_model_version(name, source, run_id, tags=dict(tags), description=about)


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("training.register", __doc__)
    parser.add_argument("--name", required=True, help="registered model")
    add_setting(parser, "checkpoint", metavar="DIR", required=True)
    add_setting(parser, "memory", metavar="DIR", required=True)
    add_setting(parser, "index", metavar="DIR")
    parser.add_argument("--evaluation", required=True, help="EVALUATION directory of training.evaluate")
    parser.add_argument("--system", required=True, help="name of this system in the evaluation")
    add_setting(parser, "backbone.path", "--backbone", metavar="DIR")
    add_setting(parser, "serving.num_selected", metavar="K", note="not set: as evaluated")
    add_setting(parser, "serving.max_new_tokens")
    add_setting(parser, "retrieval.first_level", metavar="L")
    add_setting(parser, "retrieval.exact_rows", metavar="N")
    add_dense_settings(parser)
    add_setting(parser, "device")
    parser.add_argument(
        "--metrics",
        type=Path,
        help="metrics.jsonl of the training run (default: of the run beside the checkpoint, if it is there)",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        nargs="*",
        default=[],
        help="more pictures for the run; the evaluation's are logged anyway",
    )
    parser.add_argument(
        "--licence",
        action="append",
        default=[],
        metavar="PART=TEXT",
        help="for the model card, as corpus=CC-BY-SA-4.0; parts are corpus, questions, language model, or your own "
        "(repeatable; that of the language model is read from its folder)",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="wheel of this package, for the environment that MLflow makes of the version (default: it is packed as "
        "it is here)",
    )
    add_setting(parser, "tracking.uri", "--tracking-uri", metavar="URI", required=True)
    add_setting(parser, "tracking.experiment")
    parser.add_argument(
        "--dry-run", action="store_true", help="check that everything fits, print what would be registered, and stop"
    )
    return parser


def licences_of(given: list[str]) -> dict[str, str]:
    """Licences by part.

    Raises:
        InputError: one is not `PART=TEXT`.
    """
    pairs = [text.partition("=") for text in given]
    for part, _, licence in pairs:
        if not part.strip() or not licence.strip():
            raise InputError(f"--licence {part!r}: expected PART=TEXT, as corpus=CC-BY-SA-4.0")
    return {part.strip(): licence.strip() for part, _, licence in pairs}


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    check_names(options.name)
    licences = licences_of(options.licence)
    checkpoint, evaluation = Checkpoint.open(options.checkpoint), Artefact.open(options.evaluation, "EVALUATION")
    for option, files in (
        ("--pictures", options.pictures),
        ("--metrics", [options.metrics] if options.metrics else []),
        ("--wheel", [options.wheel] if options.wheel else []),
    ):
        for path in files:
            if not path.is_file():
                raise InputError(f"{option} {path}: no such file; leave it out or correct the path")
    check_wheel(options.wheel)
    registration = Registration(
        name=options.name,
        checkpoint=checkpoint,
        memory=Artefact.open(options.memory, "MEMORY", lazy=True),
        index=Artefact.open(options.index, "INDEX", lazy=True) if options.index else None,
        evaluation=evaluation,
        system=options.system,
        backbone=options.backbone,
        num_selected=options.num_selected
        if "num_selected" in options.config.serving.model_fields_set
        else int(evaluation.manifest["made_by"]["recipe"]["settings"]["num_selected"]),
        max_new_tokens=options.max_new_tokens,
        first_level=options.first_level,
        exact_rows=options.exact_rows,
        device=options.device,
        dense=options.config.retrieval.only_dense(),
    )
    metrics = options.metrics or metrics_beside(checkpoint)
    if options.dry_run:
        registration.check()
        print(
            json.dumps(
                {"tags": registration.tags(), "model_config": registration.model_config(), "metrics": str(metrics)},
                indent=1,
            )
        )
        return 0
    with answers(options.tracking_uri):
        version = register(
            options.tracking_uri,
            options.experiment,
            registration,
            metrics,
            options.pictures,
            licences,
            options.wheel,
        )
    print(
        f"{options.name} version {version.version}: models:/{options.name}/{version.version} "
        f"(metrics by step: {metrics or 'none'})"
    )
    return 0


if __name__ == "__main__":
    command_line(main)
