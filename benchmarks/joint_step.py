"""Step time of joint training: candidates from stored memory against candidates compressed in the step.

python -m benchmarks.joint_step [--model tiny NAME=FOLDER …] [--document-tokens 128 256] [--dtype bfloat16] [--repeats
5]

Three steps of the same questions, pools and weights, each with backward pass and optimiser update (query reasoner and
generator train):

stored      the candidates' memory is read from a mapped MEMORY
compressed  every candidate is compressed in the step, without gradient, padded to the longest of its pool
published   as the published implementation does it: the same with every candidate padded to 256 + 3 tokens and every
question to 1024 + 3

`tiny` is a two-layer model that is made on the spot. What a search of an index costs is not part of any of the three.
"""

import argparse
import dataclasses
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS, environment, save
from benchmarks.joint_step_report import VARIANTS, markdown
from clara.config.flags import plain_parser
from clara.config.load import load
from clara.config.roles import GENERATOR, QUERY_REASONER
from clara.config.tree import Config
from clara.data.records import Chunk, chunk_id, input_text, row_id
from clara.errors import InputError, command_line
from clara.memory.compress import Encoding, write_memory_shard
from clara.memory.fingerprint import EncodingSettings, of_checkpoint
from clara.memory.shards import shard_name
from clara.memory.store import MemoryStore, complete_memory
from clara.model.checkpoint import fresh_model, save_checkpoint
from clara.model.joint_batch import JointBatch
from clara.model.model import ClaraModel
from clara.model.steps import JointStep
from pipelines.world.command import save_backbone
from training.loop.engine import LocalEngine

TINY = "tiny"
# The published implementation's fixed lengths, without the memory tokens.
_PUBLISHED_DOCUMENT_TOKENS, _PUBLISHED_QUESTION_TOKENS = 256 + 3, 1024 + 3


def words_of(model: ClaraModel, rng: random.Random, num_tokens: int) -> str:
    """A text of the tokenizer's own words, of about that many tokens, never more."""
    vocabulary = sorted(w.strip("Ġ▁") for w in model.tokenizer.get_vocab())
    usable = [w for w in vocabulary if w.isascii() and w.isalpha() and len(w) >= 3]
    words = [rng.choice(usable) for _ in range(num_tokens)]
    while len(model.document_ids(" ".join(words))) > num_tokens:
        words.pop()
    return " ".join(words)


def chunks(model: ClaraModel, count: int, num_tokens: int, rng: random.Random) -> list[Chunk]:
    """Made-up chunks whose lengths are within a quarter of `num_tokens`, but never over the model's limit."""
    found = []
    for number in range(count):
        wanted = min(model.settings.max_document_tokens, round(num_tokens * rng.uniform(0.75, 1.25)))
        title = f"Document {number}"
        text = words_of(model, rng, wanted - len(model.document_ids(input_text(title, ""))))
        name = chunk_id(title, text)
        found.append(Chunk(row_id(name), name, f"d{number}", title, text, 0, len(text), 0, False, "made up"))
    return found


def write_memory(model: ClaraModel, config: Config, rows: Sequence[Chunk], folder: Path) -> MemoryStore:
    """MEMORY of the chunks by the model, in float16."""
    save_checkpoint(model, folder / "checkpoint", stage="joint", recipe={"made_by": "benchmarks"})
    write_chunks(model, config, rows, folder / "checkpoint", folder / "memory")
    return MemoryStore.open(folder / "memory")


def write_chunks(model: ClaraModel, config: Config, rows: Sequence[Chunk], checkpoint: Path, folder: Path) -> None:
    """MEMORY of the chunks in a folder, by the model that a CHECKPOINT holds."""
    fingerprint = of_checkpoint(
        checkpoint,
        EncodingSettings(
            max_tokens=model.settings.max_document_tokens,
            overlap_tokens=0,
            key_size=256,
            key_seed=0,
            dtype=config.backbone.dtype,
        ),
    )
    encoding = Encoding(fingerprint, "float16", 4096)
    report = write_memory_shard(lambda: model, rows, folder, shard_name(0, 1), encoding)
    complete_memory(
        folder,
        [report],
        fingerprint=fingerprint,
        codec="float16",
        num_shards=1,
        recipe={"made_by": "benchmarks"},
        counts={},
    )


@dataclasses.dataclass
class Steps:
    """The three steps over the same questions and pools."""

    model: ClaraModel
    config: Config
    store: MemoryStore
    rows: Sequence[Chunk]
    rng: random.Random

    def __post_init__(self) -> None:
        settings = self.config.joint
        self.step = JointStep(self.model, settings)
        self.model.train_only([QUERY_REASONER, GENERATOR])
        groups = [
            (settings.optimiser.learning_rate, self.model.role_parameters(role)) for role in (QUERY_REASONER, GENERATOR)
        ]
        self.engine = LocalEngine(self.step, groups, settings.optimiser)
        self.texts = {c.row_id: self.model.document_ids(input_text(c.title, c.text)) for c in self.rows}
        num = settings.micro_batch
        self.pools = [self.rng.sample(sorted(self.texts), settings.num_candidates) for _ in range(num)]
        self.questions = [self.model.question_ids(words_of(self.model, self.rng, 20)) for _ in range(num)]
        self.prompts = [
            self.model.prompts.question(words_of(self.model, self.rng, 20), words_of(self.model, self.rng, 6))
            for _ in range(num)
        ]

    def memory(self, variant: str) -> torch.Tensor:
        """Memory of the pools `[B, N, M, D]`, as the variant gets it."""
        if variant == "stored":
            return torch.stack([torch.from_numpy(self.store.memory(pool)) for pool in self.pools])
        texts = [[self.texts[row] for row in pool] for pool in self.pools]
        if variant == "published":
            texts = [[padded(ids, _PUBLISHED_DOCUMENT_TOKENS - 3) for ids in pool] for pool in texts]
        return torch.stack([self.model.compress(pool) for pool in texts])

    def run(self, variant: str) -> float:
        """One step with its update. Returns the loss."""
        questions = (
            [padded(q, _PUBLISHED_QUESTION_TOKENS - 3) for q in self.questions]
            if variant == "published"
            else self.questions
        )
        memory = self.memory(variant).to(self.model.backbone.device)
        valid = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        batch = JointBatch(questions, self.prompts, memory, valid, torch.zeros_like(valid))
        output = self.engine.forward(batch, batch.weight, len(questions))
        self.engine.backward(output.loss, last=True)
        self.engine.update([0.0, 0.0])  # rate 0: every variant meets the same weights, at the same price
        return float(output.loss.detach())


def padded(ids: Sequence[int], length: int) -> list[int]:
    """Token ids repeated to a length: they cost what padding costs."""
    return [ids[i % len(ids)] for i in range(length)]


def measure(steps: Steps, repeats: int) -> dict[str, Any]:
    """Seconds of each variant in turn, after one round that does not count, and the ratios of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses: dict[str, float] = {}
    for number in range(repeats + 1):
        for name in VARIANTS:
            gc.collect()
            began, cpu_began = time.perf_counter(), time.process_time()
            losses[name] = steps.run(name)
            if number:
                seconds[name].append(time.perf_counter() - began)
                cpu_seconds[name].append(time.process_time() - cpu_began)
    # On a CPU the process's own time: other work on the machine must not count.
    counted = cpu_seconds if steps.model.backbone.device.type == "cpu" else seconds
    ratios = {name: [v / s for v, s in zip(counted[name], counted["stored"], strict=True)] for name in VARIANTS[1:]}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "median_seconds": {name: statistics.median(values) for name, values in counted.items()},
        "ratios": {name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in ratios.items()},
        "losses": losses,
    }


def measured(name: str, folder: str, num_tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    config = load(options.config, [*options.set, f"backbone.path={folder}", f"backbone.dtype={options.dtype}"])
    rng = random.Random(options.seed)
    model = fresh_model(config, device=options.device)
    with torch.no_grad():
        for layer in model.backbone.layers.values():
            for pair in layer.adapters.values():
                torch.nn.init.normal_(pair.lora_B, std=0.01)
    rows = chunks(model, max(options.documents, config.joint.num_candidates), num_tokens, rng)
    with tempfile.TemporaryDirectory() as temporary:
        store = write_memory(model, config, rows, Path(temporary))
        found = measure(Steps(model, config, store, rows, rng), options.repeats)
    joint = config.joint
    return {
        "model": name,
        "document_tokens": num_tokens,
        "memory_tokens": model.num_memory_tokens,
        "hidden_size": model.hidden_size,
        "candidates": joint.num_candidates,
        "selected": joint.num_selected,
        "questions": joint.micro_batch,
        "dtype": options.dtype,
        **found,
    }


def models(given: Sequence[str], temporary: Path) -> list[tuple[str, str]]:
    """Names and folders of the models to measure."""
    found = []
    for item in given:
        name, sign, folder = item.partition("=")
        if item == TINY:
            save_backbone(temporary / TINY, 0)
            folder = str(temporary / TINY)
        elif not sign or not folder:
            raise InputError(
                f"--model is {item!r}; expected NAME=FOLDER, a causal LM in the transformers format, or {TINY}"
            )
        found.append((name, folder))
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    parser = plain_parser("benchmarks.joint_step", __doc__)
    parser.add_argument(
        "--model", nargs="+", default=[TINY], metavar="NAME=FOLDER", help="causal LMs to measure with (default: tiny)"
    )
    parser.add_argument(
        "--document-tokens", type=int, nargs="+", default=[128, 256], help="tokens of a chunk (default: 128 256)"
    )
    parser.add_argument("--documents", type=int, default=60, help="chunks in MEMORY (default: 60)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the frozen LM (default: bfloat16)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up chunks and questions (default: 0)")
    parser.add_argument(
        "--config",
        help="TOML file of settings (default: the tree's defaults, which are the paper's: N = 20, K = 5, M = 16)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    parser.add_argument("--output", default=str(RESULTS / "joint_step"), help="folder for results.json and results.md")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured, and stop")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    measure_all: list[Callable[[], dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, folder in models(options.model, Path(temporary)):
            for num_tokens in options.document_tokens:
                if options.dry_run:
                    print(
                        f"{name}: {folder}, chunks of about {num_tokens} tokens, "
                        f"{options.repeats} rounds of {', '.join(VARIANTS)}"
                    )
                measure_all.append(lambda n=name, f=folder, t=num_tokens: measured(n, f, t, options))  # type: ignore[misc]
        if options.dry_run:
            return 0
        about = environment("benchmarks.joint_step")
        found = []
        for one in measure_all:
            found.append(one())
            save(Path(options.output), {**about, "rows": found}, markdown(found, about))
            print(markdown(found, about).splitlines()[-3], flush=True)
    return 0


if __name__ == "__main__":
    command_line(main)
