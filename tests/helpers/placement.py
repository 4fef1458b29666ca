"""Runs every stage, compression, search, answering and evaluation on the CPU and on another device; writes figures.

In a separate process, as a device gets its name once in a process. See `tests/helpers/elsewhere.py`.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import clara
import clara.model.checkpoint as checkpoints
from clara.config.load import load
from clara.config.model import Backbone, Fusion, Score
from clara.data.examples import Example, write_examples
from clara.data.questions import read_questions
from clara.index.build import build_index
from clara.memory.compress import encode_chunks
from clara.memory.store import MemoryStore
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.question_mean import copy_with_score, mean_query
from clara.retrieval.retriever import Retriever
from clara.retrieval.utilities import score_pool
from pipelines.score_utilities.command import main as score_utilities
from tests.helpers import elsewhere, evaluation_world, joint_world, tiny
from tests.helpers.joint_world import Inline, World
from training import evaluate, pretrain
from training.launch.one_process import engine
from training.loop.lines import read
from training.run.recipe import absolute, run_paths
from training.run.run import train_rank

OUTCOME = "outcome.json"
COMPRESSOR: dict[str, object] = {"joint__train_compressor": "true", "joint__right_memory_share": 0.5}
REFRESHED: dict[str, object] = COMPRESSOR | {
    "joint__refresh__policy": "full",
    "joint__refresh__switch": "fixed",
    "joint__refresh__delta_steps": 1,
    "joint__refresh__start_step": 1,
    "joint__refresh__rerank": "true",
    "joint__refresh__canary_every": 1,
    "joint__evaluate_every": 2,
    "joint__evaluate_questions": 3,
    "joint__evaluate_answer_tokens": 3,
}
FRESH_POOLS: dict[str, object] = COMPRESSOR | {
    "joint__published_pool": "true",
    "joint__evaluate_every": 2,
    "joint__evaluate_pools": "true",
    "joint__evaluate_fresh": "true",
}
SCORED: dict[str, object] = {
    "joint__train_generator": "false",
    "joint__answer_weight": 0,
    "joint__utility_weight": 1,
}
FITTED: dict[str, object] = {"joint__fit_questions": 6, "joint__fit_share": 0.4, "joint__train_question_mean": "true"}
NAMES = (
    *("pretrain", "instruct", "compression", "joint: answers, compressor, refresh"),
    *("joint: published pools encoded afresh", "joint: labels", "joint: utilities in the step"),
    *("joint: utilities beforehand", "joint: fused, centred, fitted", "search and answers", "evaluation"),
)
_NOT_COMPARED = ("seconds", "share", "throughput", "_bytes")


@dataclass(frozen=True)
class Setting:
    """What the cases read."""

    folder: Path
    dtype: str
    backbone: Path
    world: World
    centred: World
    examples: Path
    corpus: Path
    utilities: Path


def make(folder: Path, dtype: str) -> Setting:
    """All artefacts, made on the CPU."""
    backbone = tiny.write_backbone(folder / "backbone")
    save_checkpoint(tiny.build_model(backbone), folder / "checkpoint", stage="pretrain", recipe={})
    corpus = tiny.write_corpus(folder / "corpus.jsonl")
    world = joint_world.make(folder / "world", folder / "checkpoint", corpus, dtype=dtype)
    model = load_checkpoint(world.checkpoint, Backbone.model_validate({"dtype": dtype}))
    mean = mean_query(model, [q.question for q in read_questions(world.questions)])
    score, fusion = Score(pooling="slot_mean", centred=True), Fusion(weights={"memory": 0.5, "bm25": 0.25})
    copy_with_score(Checkpoint.open(world.checkpoint), folder / "centred", score, mean, fusion=fusion, recipe={})
    build_index(world.memory, folder / "centred-index", "Flat", score=score)
    centred = replace(world, checkpoint=folder / "centred", index=folder / "centred-index")
    rows = tiny.documents()[:12]
    qa = [
        Example(f"e{n}", r["id"], r["title"], r["text"], "qa", ("Which town?",), (r["title"].split(" on ")[0],))
        for n, r in enumerate(rows)
    ]
    copied = [Example(f"a{n}", r["id"], r["title"], r["text"], "autoencode") for n, r in enumerate(rows)]
    write_examples(folder / "examples", [*qa, *copied], recipe={})
    given = {"questions": world.questions, "checkpoint": world.checkpoint, "memory": world.memory}
    given |= {"index": world.index, "output": folder / "utilities"}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    assert score_utilities([*options, "--pool-size", "6", "--num-workers", "1"]) == 0
    return Setting(folder, dtype, backbone, world, centred, folder / "examples", corpus, folder / "utilities")


class _Worker(Inline):
    """Encodes on the device that is tried."""

    def __init__(self, device: str) -> None:
        self._device = device

    def start(self, job: Any, log: Path) -> "Inline":
        return super().start(replace(job, device=self._device), log)


def _figures(metrics: Path) -> dict[str, float]:
    """Figures of all steps that do not depend on the clock."""
    return {
        f"{step}.{name}": value
        for step, values in read(metrics).items()
        for name, value in values.items()
        if isinstance(value, float) and not any(word in name for word in _NOT_COMPARED)
    }


def joint(of: World, **values: object) -> Callable[[Setting, str], dict[str, float]]:
    """A joint run of two steps."""

    def run(setting: Setting, device: str) -> dict[str, float]:
        given = {"backbone__dtype": setting.dtype, "joint__steps": 2, "joint__checkpoint_every": 1} | values
        if setting.dtype == "bfloat16":
            given["backbone__gradient_checkpointing"] = "true"
        output = setting.folder / "runs" / device / str(abs(hash(json.dumps(given, default=str))))
        config = absolute(load(None, of.sets(output, **given)[1::2]))
        where = run_paths(config)
        train_rank(config, where, engine, num_ranks=1, worker=_Worker(device), device=device)
        return _figures(where.metrics)

    return run


def memory_stage(stage: str) -> Callable[[Setting, str], dict[str, float]]:
    """Two steps of `pretrain` or `instruct`."""

    def run(setting: Setting, device: str) -> dict[str, float]:
        output = setting.folder / "runs" / device / stage
        sets = [f"stage={stage}", f"{stage}.steps=2", f"output={output}", f"backbone.dtype={setting.dtype}"]
        sets += [f"backbone.gradient_checkpointing={str(setting.dtype == 'bfloat16').lower()}"]
        if stage == "pretrain":
            sets += [f"examples={setting.examples}", f"backbone.path={setting.backbone}", "model.num_memory_tokens=4"]
            sets += [
                "model.residual=segment_mean",
                "model.query_residual=question_mean",
                "pretrain.documents_per_step=4",
            ]
        else:
            sets += [f"checkpoint={setting.world.checkpoint}", f"questions={setting.world.questions}"]
            sets += [f"corpus={setting.corpus}", "instruct.questions_per_step=4", "instruct.num_documents=2"]
        with _loading_on(device):
            assert pretrain.main([part for item in sets for part in ("--set", item)]) == 0
        (metrics,) = output.glob("run-*/metrics.jsonl")
        return _figures(metrics)

    return run


@contextmanager
def _loading_on(device: str) -> Iterator[None]:
    """The command asks for `cuda` or `cpu`; inside, its model is loaded on this device."""
    whole = {name: getattr(checkpoints, name) for name in ("load_checkpoint", "fresh_model")}
    for name, function in whole.items():
        setattr(checkpoints, name, lambda *a, _f=function, **k: _f(*a, **(k | {"device": device})))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(checkpoints, name, function)


def compression(setting: Setting, device: str) -> dict[str, float]:
    """Memory and query vectors."""
    store = MemoryStore.open(setting.world.memory)
    found = {}
    for of in (setting.world, setting.centred):
        model = load_checkpoint(of.checkpoint, Backbone.model_validate({"dtype": setting.dtype}), device=device).eval()
        memory = encode_chunks(model, store.records(store.row_ids[:5]), batch_tokens=128)
        query = mean_query(model, ["Who is the mayor of Arlen?", "Which river?"])
        found |= {f"{of.checkpoint.name}.memory": float(np.abs(memory).sum())}
        found |= {f"{of.checkpoint.name}.query": float(query.abs().sum())}
    return found


def answering(setting: Setting, device: str) -> dict[str, float]:
    """Search and answers of a system, with an INDEX and without, with the published and the fused score."""
    found: dict[str, float] = {}
    for of in (setting.world, setting.centred):
        for index in (of.index, None) if of is setting.world else (of.index,):
            system = clara.open(of.checkpoint, of.memory, index, device=device)
            name = f"{of.checkpoint.name}.{index is not None}"
            [passages] = system.search(["Who is the mayor of Arlen on the Tamo?"], k=4)
            found |= {f"{name}.{p.row_id}": p.score for p in passages}
            answers = system.ask(["Who is the mayor of Arlen?", "What?"], passages=2, max_new_tokens=4)
            found |= {f"{name}.{a.answer}": 1.0 for a in answers}
            found["".join(system.stream("Which river is it?", passages=2, max_new_tokens=4))] = 1.0
            found |= _alone(system.retriever, name)
    return found


def _alone(retriever: Retriever, name: str) -> dict[str, float]:
    """A pool scored beforehand, and greedy answers of the model itself."""
    questions = read_questions(retriever.store.directory.parent / "questions", "train")
    rows = retriever.store.row_ids[:3].tolist()
    scored = score_pool(retriever, questions[0], rows)
    answer = retriever.model.generate([questions[0].question], [retriever.memories(rows)], max_new_tokens=4)
    return {f"{name}.utility{n}": nats for n, nats in enumerate(scored.log_likelihoods)} | {f"{name}.{answer}": 1.0}


def evaluation(setting: Setting, device: str) -> dict[str, float]:
    """The command that compares systems, with the plain LM on text."""
    folder = setting.folder / "evaluated"
    if not folder.exists():
        evaluation_world.write_memory(folder / "memory", setting.world.checkpoint, setting.corpus)
        evaluation_world.write_town_questions(folder / "questions", setting.corpus, per_split=2)
    output = setting.folder / "runs" / device / "evaluation"
    arguments = ["--questions", str(folder / "questions"), "--output", str(output), "--device", device]
    arguments += ["--system", f"own={setting.world.checkpoint},{folder / 'memory'}", "--generate", "2"]
    assert evaluate.main([*arguments, "--baselines", "bm25,text", "--max-new-tokens", "4"]) == 0
    systems = json.loads((output / "report.json").read_text(encoding="utf-8"))["systems"]
    return {
        f"{system}.{split}.{measure}": figure["value"]
        for system, splits in systems.items()
        for split, measures in splits.items()
        for measure, figure in measures.items()
    }


def cases(setting: Setting) -> dict[str, Callable[[Setting, str], dict[str, float]]]:
    """Everything that computes, by name."""
    world, centred = setting.world, setting.centred
    functions = (
        *(memory_stage("pretrain"), memory_stage("instruct"), compression, joint(world, **REFRESHED)),
        *(joint(world, **FRESH_POOLS), joint(world, joint__labels_weight=1), joint(world, joint__utility_weight=1)),
        *(joint(world, utilities=setting.utilities, **SCORED), joint(centred, **FITTED), answering, evaluation),
    )
    return dict(zip(NAMES, functions, strict=True))


def tried(case: Callable[[Setting, str], dict[str, float]], setting: Setting, device: str) -> dict[str, Any]:
    """Figures of a case on a device, or how it failed."""
    try:
        with nullcontext() if device == "cpu" else elsewhere.OtherDevice():
            return {"figures": case(setting, device)}
    except Exception:
        return {"error": traceback.format_exc()[-2500:]}


def planted(setting: Setting) -> Mapping[str, Any]:
    """The same cases with one tensor left on the CPU each."""
    from clara.model.lora import LoraPair
    from training.stages.joint_stage import JointStage

    whole, batch = LoraPair.forward, JointStage._batch

    def forward(self: LoraPair, x: torch.Tensor, dropout: bool) -> torch.Tensor:
        return whole(self, x, dropout) * torch.ones(x.shape[-2], 1)

    def left(self: JointStage, *args: Any) -> Any:
        made = batch(self, *args)
        return replace(made, valid=made.valid.cpu())

    found = {}
    LoraPair.forward = forward  # type: ignore[method-assign]
    found["a factor made in the model"] = tried(compression, setting, elsewhere.NAME)
    LoraPair.forward = whole  # type: ignore[method-assign]
    JointStage._batch = left  # type: ignore[method-assign]
    found["a mask of the batch"] = tried(joint(setting.world, joint__steps=1), setting, elsewhere.NAME)
    JointStage._batch = batch  # type: ignore[method-assign]
    return found


def main(folder: str, dtype: str) -> None:
    """All cases; the result is FOLDER/outcome.json."""
    torch.set_num_threads(1)
    elsewhere.register()
    with sdpa_kernel(SDPBackend.MATH):
        setting = make(Path(folder), dtype)
        found: dict[str, Any] = {
            name: {device: tried(case, setting, device) for device in ("cpu", elsewhere.NAME)}
            for name, case in cases(setting).items()
        }
        wrong = planted(setting) if dtype == "float32" else {}
    (Path(folder) / OUTCOME).write_text(json.dumps({"dtype": dtype, "cases": found, "planted": wrong}))
