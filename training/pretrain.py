"""Stages `pretrain` and `instruct`: make the compressor and the generator that joint training starts from.

python training/pretrain.py --config infra/configs/demo.toml --set stage=pretrain --set examples=DIR --set output=DIR
python training/pretrain.py --config infra/configs/demo.toml --set stage=instruct --set checkpoint=DIR --set questions=DIR --set corpus=FILE …
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python puts training/ first on the path, where a module could shadow a library
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse

import torch

from clara import artefact, lora
from clara.checkpoint import fresh_model, load_checkpoint, save_checkpoint
from clara.config import Config, load, require
from clara.errors import InputError, command_line
from clara.examples import read_examples
from clara.model import GENERATOR, ClaraModel
from clara.questions import read_questions
from training.corpus import read_documents
from training.engine import LocalEngine
from training.loop import Stage, run
from training.stages import InstructStage, PretrainStage


def recipe(config: Config) -> dict[str, object]:
    """What determines the checkpoint: settings of the stage and hashes of what it reads."""
    inputs = {name: artefact.manifest_hash(path) for name in ("checkpoint", "examples", "questions") if (path := getattr(config, name))}
    if config.corpus:
        inputs["corpus"] = artefact.sha256_file(config.corpus)
    settings = config.model_dump(include={"seed", "stage", "model", "prompts", config.stage})
    return {"settings": settings, "dtype": config.backbone.dtype, "inputs": inputs}


def build(config: Config, micro_batch: int) -> tuple[ClaraModel, Stage]:
    """The model and the stage that a configuration asks for."""
    model = load_checkpoint(config.checkpoint, config.backbone) if config.checkpoint else fresh_model(config)
    if config.stage == "pretrain":
        require(config, "examples")
        return model, PretrainStage(model, read_examples(config.examples), config, micro_batch)
    require(config, "questions", "corpus")
    questions = [q for q in read_questions(config.questions, "train") if q.positive_ids]
    documents = read_documents(config.corpus, {q.positive_ids[0] for q in questions})
    if config.instruct.generator == "restart":
        with torch.no_grad():
            for layer in model.backbone.layers.values():
                layer.adapters[GENERATOR].lora_B.zero_()
    return model, InstructStage(model, questions, documents, config, micro_batch)


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python training/pretrain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="TOML file; shipped ones are in infra/configs/")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, as in --set pretrain.steps=100; repeatable"
    )
    parser.add_argument("--micro-batch", type=int, default=0, help="documents or questions in one forward pass (default: the whole step)")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    options = parser.parse_args(argv)
    config = load(options.config, options.set)
    if config.stage == "joint":
        raise InputError(
            "stage is 'joint'; this program makes 'pretrain' and 'instruct' (--set stage=pretrain), training/joint.py the other"
        )
    require(config, "output", *["checkpoint"] * (config.stage == "instruct"))
    if options.dry_run:
        print(json.dumps(config.model_dump(), indent=1))
        return 0
    plan = recipe(config)
    target = Path(config.output) / "checkpoint"
    if artefact.up_to_date(target, "CHECKPOINT", plan):
        print(f"{target}: up to date")
        return 0
    if config.launch.threads:
        torch.set_num_threads(config.launch.threads)
    per_step = config.pretrain.documents_per_step if config.stage == "pretrain" else config.instruct.questions_per_step
    model, stage = build(config, options.micro_batch or per_step)
    run_directory = Path(config.output) / f"run-{artefact.hash_of(plan)[:12]}"
    run_directory.mkdir(parents=True, exist_ok=True)
    engine = LocalEngine(stage.module, stage.groups(), stage.optimiser)
    with open(run_directory / "metrics.jsonl", "a", encoding="utf-8") as metrics:

        def log(step: int, values: dict[str, float]) -> None:
            metrics.write(json.dumps({"step": step, **values}) + "\n")
            metrics.flush()

        run(stage, engine, run_directory, seed=config.seed, checkpoint_every=config.joint.checkpoint_every, log=log)
    lora.copy_adapter(model.backbone.layers, "compressor", "query_reasoner")
    own = config.pretrain.train_backbone and config.stage == "pretrain"
    store = own or (bool(config.checkpoint) and artefact.read_manifest(config.checkpoint)["backbone"]["own"])
    save_checkpoint(model, target, stage=config.stage, recipe=plan, store_backbone=store, separate_query_reasoner=False)
    print(f"{target}: CHECKPOINT after {stage.steps} steps of {config.stage}")
    return 0


if __name__ == "__main__":
    command_line(main)
