"""Stages `pretrain` and `instruct`: make the compressor and the generator that joint training starts from.

python training/pretrain.py --config infra/configs/demo.toml --set stage=pretrain --set examples=DIR \\
        --set output=DIR
python training/pretrain.py --config infra/configs/demo.toml --set stage=instruct --set checkpoint=DIR \\
        --set questions=DIR --set corpus=FILE …
"""

import json
import logging
import os
import sys
from pathlib import Path

if (
    __name__ == "__main__"
):  # run as a file, Python puts training/ first on the path, where a module could shadow a library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from typing import TYPE_CHECKING

from clara.config.flags import Command
from clara.config.load import require
from clara.config.roles import GENERATOR
from clara.config.tree import PRETRAIN, Config
from clara.data.examples import read_examples
from clara.data.input_files import input_hashes
from clara.data.questions import read_questions
from clara.errors import InputError, command_line
from clara.model.artefact import check_given
from clara.model.backbone_files import weights_hash
from clara.storage.manifest import hash_of, make_directory, manifest_hash, read_manifest, up_to_date
from clara.storage.paths import require_local
from training.registry.resolve import local_checkpoint
from training.run.checks import check_submitted
from training.run.recipe import JOB_VARIABLE
from training.stages.documents import document_files, read_documents

if TYPE_CHECKING:
    from clara.model.model import ClaraModel
    from training.loop.loop import Stage

logger = logging.getLogger(__name__)


def recipe(config: Config, micro_batch: int) -> dict[str, object]:
    """What determines the checkpoint: settings of the stage and hashes of its inputs (the backbone: see `up_to_date`).

    Args:
        config: the run's.
        micro_batch: questions in one forward pass, out of which stage `instruct` takes the other documents of a prompt;
            0: the whole step.
    """
    inputs = {
        name: manifest_hash(path) for name in ("checkpoint", "examples", "questions") if (path := getattr(config, name))
    }
    if config.corpus:
        hashes = input_hashes(document_files(config.corpus))
        inputs["corpus"] = hash_of(hashes) if len(hashes) > 1 else next(iter(hashes.values()))
    if config.pretrain.train_backbone and config.stage == "pretrain" and not config.checkpoint:
        inputs["backbone"] = weights_hash(config.backbone.path)
    # Without defaults, so that adding a setting does not invalidate earlier runs.
    settings = config.model_dump(include={"seed", "stage", "model", "prompts", config.stage}, exclude_defaults=True)
    if config.stage == "instruct" and micro_batch not in (0, config.instruct.questions_per_step):
        settings["micro_batch"] = micro_batch
    return {"settings": settings, "dtype": config.backbone.dtype, "inputs": inputs}


def finished(target: Path, config: Config, plan: dict[str, object]) -> bool:
    """Whether the CHECKPOINT is there, made by this recipe on this backbone."""
    if not up_to_date(target, "CHECKPOINT", plan):
        return False
    backbone = read_manifest(target)["backbone"]
    if backbone["own"] or not config.backbone.path:
        return True
    return weights_hash(config.backbone.path) == str(backbone["sha256"])


def build(config: Config, micro_batch: int) -> tuple["ClaraModel", "Stage"]:
    """The model and the stage that a configuration asks for."""
    from clara.model import lora  # imports torch, as the others
    from clara.model.checkpoint import fresh_model, load_checkpoint
    from training.stages.memory_stages import InstructStage, PretrainStage, offered_documents

    device = "cuda" if config.launch.gpu else "cpu"
    model = (
        load_checkpoint(config.checkpoint, config.backbone, device=device)
        if config.checkpoint
        else fresh_model(config, device=device)
    )
    if config.stage == "pretrain":
        require(config, "examples")
        if config.pretrain.train_backbone and config.backbone.dtype != "float32":
            raise InputError(
                f"backbone.dtype is {config.backbone.dtype!r}, and pretrain.train_backbone updates these weights "
                "themselves: "
                "small updates would be rounded away; set backbone.dtype=float32"
            )
        return model, PretrainStage(model, read_examples(config.examples), config, micro_batch)
    require(config, "questions", "corpus")
    every = read_questions(config.questions, "train")
    questions = [q for q in every if q.positive_ids]
    logger.info(
        "instruct: %d questions, %d others name no positive document and are left out",
        len(questions),
        len(every) - len(questions),
    )
    documents = read_documents(
        config.corpus, {name for q in questions for name in offered_documents(q, config.instruct)}
    )
    if config.instruct.generator == "restart":
        lora.restart_adapter(model.backbone.layers, GENERATOR)
    return model, InstructStage(model, questions, documents, config, micro_batch)


def train(config: Config, micro_batch: int, plan: dict[str, object], target: Path) -> None:
    """Train the stage and write its CHECKPOINT.

    Args:
        config: the run's.
        micro_batch: documents or questions in one forward pass; 0: the whole step.
        plan: the CHECKPOINT's recipe.
        target: the CHECKPOINT.
    """
    import torch

    from clara.model import lora
    from clara.model.checkpoint import save_checkpoint
    from training.loop.engine import LocalEngine
    from training.loop.loop import run

    if config.launch.threads:
        torch.set_num_threads(config.launch.threads)
    per_step = config.pretrain.documents_per_step if config.stage == "pretrain" else config.instruct.questions_per_step
    run_directory = make_directory(Path(config.output) / f"run-{hash_of(plan)[:12]}")
    model, stage = build(config, micro_batch or per_step)
    engine = LocalEngine(stage.module, stage.groups(), stage.optimiser)
    with open(run_directory / "metrics.jsonl", "a", encoding="utf-8") as metrics:

        def log(step: int, values: dict[str, float]) -> None:
            metrics.write(json.dumps({"step": step, **values}) + "\n")
            metrics.flush()

        run(stage, engine, run_directory, seed=config.seed, checkpoint_every=config.joint.checkpoint_every, log=log)
    lora.copy_adapter(model.backbone.layers, "compressor", "query_reasoner")
    own = config.pretrain.train_backbone and config.stage == "pretrain"
    store = own or (bool(config.checkpoint) and read_manifest(config.checkpoint)["backbone"]["own"])
    save_checkpoint(model, target, stage=config.stage, recipe=plan, store_backbone=store, separate_query_reasoner=False)
    print(f"{target}: CHECKPOINT after {stage.steps} steps of {config.stage}")


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("training/pretrain.py", __doc__, uses=PRETRAIN)
    parser.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        help="documents or questions in one forward pass (default: the whole step)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    config: Config = options.config
    if config.stage == "joint":
        raise InputError(
            "stage is 'joint'; this program makes 'pretrain' and 'instruct' (--set stage=pretrain), "
            "training/joint.py the other"
        )
    other = "instruct" if config.stage == "pretrain" else "pretrain"
    if ignored := [o.key for o in options.overrides if o.key.partition(".")[0] == other]:
        raise InputError(
            f"--set {ignored[0]}: stage is {config.stage!r}, and only stage {other!r} reads section {other}; "
            "leave it out"
        )
    require(config, "output", *["checkpoint"] * (config.stage == "instruct"))
    require_local("output", config.output)
    if os.environ.get(JOB_VARIABLE):
        check_submitted(config)
    config = config.model_copy(update={"checkpoint": local_checkpoint(config.checkpoint, config.tracking.uri)})
    if config.checkpoint:
        check_given(config.checkpoint, config, [override.key for override in options.overrides])
    if options.dry_run:
        print(json.dumps(config.part(PRETRAIN), indent=1))
        return 0
    if options.micro_batch < 0:
        raise InputError(
            f"--micro-batch is {options.micro_batch}; expected a number of documents or questions, or 0 for the "
            "whole step"
        )
    plan = recipe(config, options.micro_batch)
    target = Path(config.output) / "checkpoint"
    if finished(target, config, plan):
        print(f"{target}: up to date")
        return 0
    train(config, options.micro_batch, plan, target)
    return 0


if __name__ == "__main__":
    command_line(main)
