"""Compressing documents: this job against a naive loop, side by side, and against the machine's matrix products.

    python -m benchmarks.corpus_job --base FOLDER --input documents.jsonl --documents 64 [--dtype float32 int8]

Ours: the shards that the job makes of so many chunks, one process a core, each with one thread; batches of like lengths
by token budget, the trunk alone; in each type given. Naive, as a published reference does it: one process with a thread
a core, documents as they come, each padded on the left to the maximum, the full language-model head, every layer's
states kept; in one type. All run the same adapter on the same chunks, their memory is compared, and they take turns.

Seconds on a clock depend on what else the machine does; processor seconds of the processes hardly do. The operations
that each way asks for say what the ratio would be if both used the processor equally well.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.corpus_job_report import BATCH_TOKENS, least_cosine, markdown, share_of_padding, times_the_naive_way
from benchmarks.environment import RESULTS, environment, save
from benchmarks.processes import python, run_measured
from clara.config.encoding import INT8
from clara.config.flags import plain_parser
from clara.config.model import Backbone, Model
from clara.config.roles import COMPRESSOR
from clara.config.tree import Config
from clara.data.corpus import read_rows, to_document
from clara.data.records import Chunk, input_text
from clara.memory.compress import compress_chunks
from clara.model import lora
from clara.model.checkpoint import fresh_model, load_compressor, save_checkpoint
from clara.model.lora import Route
from clara.model.model import ClaraModel

_NAIVE_ROWS = 8  # of a batch; the published scripts' own
_PRODUCT, _PRODUCT_SECONDS = 1024, 2.0
_MODEL: list[ClaraModel] = []


def parser() -> argparse.ArgumentParser:
    found = plain_parser("benchmarks.corpus_job", __doc__)
    found.add_argument(
        "--base", type=Path, required=True, help="folder of the LM, as python -m infra.demo.base_model makes it"
    )
    found.add_argument("--input", type=Path, required=True, help="documents as JSONL with title and text")
    found.add_argument(
        "--documents", type=int, default=256, help="documents to compress, the first ones (default: 256, two shards)"
    )
    found.add_argument(
        "--max-tokens", type=int, default=256, help="tokens of a chunk, and what the naive way pads to (default: 256)"
    )
    found.add_argument("--memory-tokens", type=int, default=16, help="memory tokens of a chunk (default: 16)")
    found.add_argument(
        "--dtype",
        nargs="+",
        choices=("float32", "bfloat16", INT8),
        default=["float32"],
        help="types that ours computes in, side by side (default: float32)",
    )
    found.add_argument(
        "--naive-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type that the naive way computes in: the faster one of the processor (default: float32)",
    )
    found.add_argument("--no-job", action="store_true", help="leave out the whole command, which is run in each type")
    found.add_argument("--repeats", type=int, default=3, help="turns of each way (default: 3)")
    found.add_argument(
        "--num-workers", type=int, default=2, help="processes of ours, threads of the naive way (default: 2)"
    )
    found.add_argument("--output", type=Path, default=RESULTS / "corpus_job", help="folder of the results")
    return found


# --- what the processes do


def load(checkpoint: str, dtype: str, threads: int) -> None:
    torch.set_num_threads(threads)
    _MODEL[:] = [load_compressor(checkpoint, dtype)]


def ours(chunks: Sequence[Chunk]) -> tuple[NDArray[np.float32], float]:
    """Memory `[n, M, D]`, and the processor seconds that it took."""
    begin = time.process_time()
    memory, failures = compress_chunks(_MODEL[0], chunks, batch_tokens=BATCH_TOKENS)
    assert not failures, failures[0].reason
    return memory, time.process_time() - begin


@torch.no_grad()
def naive(job: tuple[Sequence[Chunk], int]) -> tuple[NDArray[np.float32], float]:
    """The same, each chunk padded on the left to `max_tokens` and what the prompt puts around a text."""
    chunks, max_tokens = job
    started = time.process_time()
    model = _MODEL[0]
    num_memory = model.num_memory_tokens
    longest = int(model.settings.markers) + len(model.input_ids([0] * max_tokens))
    memory_tokens, markers, _ = model.slots()
    out = []
    for begin in range(0, len(chunks), _NAIVE_ROWS):
        rows, mask = [], []
        for chunk in chunks[begin : begin + _NAIVE_ROWS]:
            ids = torch.tensor(model.input_ids(model.document_ids(input_text(chunk.title, chunk.text))))
            embedded = model.backbone.embed(ids)
            front = markers[:1].to(embedded.dtype) if model.settings.markers else embedded[:0]
            padding = embedded.new_zeros(longest - len(front) - len(ids), embedded.shape[1])
            rows.append(torch.cat([padding, front, embedded, memory_tokens.to(embedded.dtype)]))
            mask.append(torch.arange(longest + num_memory) >= len(padding))
        mask_BL = torch.stack(mask).long()
        with lora.routed(Route(COMPRESSOR)):
            found = model.backbone.lm(
                inputs_embeds=torch.stack(rows),
                attention_mask=mask_BL,
                position_ids=(mask_BL.cumsum(dim=1) - 1).clamp(min=0),
                output_hidden_states=True,
                use_cache=False,
            )
        out.append(found.hidden_states[-1][:, -num_memory:].float().numpy())
    return np.concatenate(out), time.process_time() - started


def products(dtype: str) -> float:
    """Floating-point operations a second of one process' square matrix products, for some seconds."""
    kind = getattr(torch, dtype)
    left, right = (torch.randn(_PRODUCT, _PRODUCT).to(kind) for _ in range(2))
    left @ right
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < _PRODUCT_SECONDS:
        left @ right
        count += 1
    return 2 * _PRODUCT**3 * count / (time.monotonic() - begin)


# --- the comparison


def flops_of_head(model: ClaraModel) -> float:
    """Of the language-model head for one token: two a weight."""
    return 2.0 * model.backbone.lm.get_output_embeddings().weight.numel()


def flops_a_token(model: ClaraModel, length: float) -> float:
    """Operations of the trunk per token of a text: two per weight, and attention's products; without adapters."""
    weights = sum(
        p.numel()
        for name, p in model.backbone.lm.named_parameters()
        if "embed" not in name and "lm_head" not in name and "lora" not in name
    )
    shape = model.backbone.lm.config
    return 2 * weights + 2 * 2 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length / 2


def chunked(args: argparse.Namespace, checkpoint: Path) -> list[Chunk]:
    from pipelines.corpus.chunking import chunk_document  # Beam comes with the next one
    from pipelines.corpus.chunks import checkpoint_tokens

    tokens = checkpoint_tokens(str(checkpoint))
    chunks: dict[str, Chunk] = {}
    for position, (number, row) in enumerate(read_rows(str(args.input))):
        if position == args.documents:
            break
        document = to_document(row, str(args.input), number)
        for chunk in chunk_document(document, tokens, args.max_tokens, 0) if document else ():
            chunks[chunk.chunk_id] = chunk
    return list(chunks.values())


def in_shards(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """The chunks by shard, as the job with its defaults has them; none is empty."""
    from pipelines.build_memory.graph import default_num_shards

    shards: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        shards.setdefault(chunk.row_id % default_num_shards(len(chunks)), []).append(chunk)
    return [shards[index] for index in sorted(shards)]


def take_turns(args: argparse.Namespace, checkpoint: Path, chunks: list[Chunk]) -> dict[str, Any]:
    """Seconds of each way by turn, operations per second of the products in between, and the memories' distance."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin where cores are shared would slow the naive way
    start = multiprocessing.get_context("spawn")
    shards = in_shards(chunks)
    ways = [*args.dtype, "naive"]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    ceilings: list[float] = []
    made: dict[str, NDArray[np.float32]] = {}
    with ExitStack() as pools:
        workers = {
            dtype: pools.enter_context(start.Pool(args.num_workers, load, (str(checkpoint), dtype, 1)))
            for dtype in args.dtype
        }
        alone = pools.enter_context(start.Pool(1, load, (str(checkpoint), args.naive_dtype, args.num_workers)))
        for pool in workers.values():
            pool.map(ours, [chunks[:1]] * args.num_workers, 1)  # models are loaded by then
        alone.map(naive, [(chunks[:1], args.max_tokens)])
        for turn in range(args.repeats):
            for way in ways:
                begin = time.monotonic()
                if way == "naive":
                    done = alone.map(naive, [(chunks, args.max_tokens)])
                else:
                    done = workers[way].map(ours, shards, 1)
                seconds[way].append(time.monotonic() - begin)
                spent[way].append(sum(processor_seconds for _, processor_seconds in done))
                made[way] = np.concatenate([memory for memory, _ in done])
                print(f"turn {turn + 1} of {args.repeats}: {way} {seconds[way][-1]:.1f} s", flush=True)
            kinds = [args.naive_dtype] * args.num_workers
            ceilings.append(sum(workers[args.dtype[0]].map(products, kinds, 1)))
    position = {chunk.chunk_id: index for index, chunk in enumerate(chunks)}
    slow = made.pop("naive")[[position[chunk.chunk_id] for shard in shards for chunk in shard]]
    apart = {way: float(np.abs(memory - slow).max() / np.abs(slow).max()) for way, memory in made.items()}
    near = {way: least_cosine(memory, slow) for way, memory in made.items()}
    return {
        "seconds": seconds,
        "processor_seconds": spent,
        "products_flops": ceilings,
        "largest_difference": apart,
        "least_cosine": near,
    }


def whole_job(args: argparse.Namespace, checkpoint: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The command from start to end, with its processes' memory."""
    memory = folder / f"memory-{dtype}"
    command = python("pipelines.build_memory", "--input", str(args.input.resolve()), "--output", str(memory))
    command += ["--checkpoint", str(checkpoint), f"--dtype={dtype}", f"--num-workers={args.num_workers}"]
    usage = run_measured([*command, f"--limit={args.documents}", f"--max-tokens={args.max_tokens}"], log=folder / "log")
    return {"seconds": usage.seconds, "processor_seconds": usage.processor_seconds, "peak_pss_bytes": usage.pss}


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = Model(num_memory_tokens=args.memory_tokens, max_document_tokens=args.max_tokens)
        config = Config(backbone=Backbone(path=str(args.base.resolve()), dtype="float32"), model=shape)
        model = fresh_model(config)
        save_checkpoint(model, folder / "checkpoint", stage="pretrain", recipe={"made_by": "benchmarks"})
        chunks = chunked(args, folder / "checkpoint")
        lengths = [chunk.num_tokens for chunk in chunks]
        around = len(model.input_ids([])) + int(model.settings.markers) + args.memory_tokens
        found = take_turns(args, folder / "checkpoint", chunks)
        types = [] if args.no_job else args.dtype
        jobs = {dtype: whole_job(args, folder / "checkpoint", folder, dtype) for dtype in types}
    tokens = sum(lengths)
    needed = sum((length + around) * flops_a_token(model, length + around) for length in lengths)
    padded = len(chunks) * (args.max_tokens + around)
    asked = padded * (flops_a_token(model, args.max_tokens + around) + flops_of_head(model))
    operations = {way: asked if way == "naive" else needed for way in found["seconds"]}
    padding = share_of_padding(
        [[c.num_tokens for c in shard] for shard in in_shards(chunks)], args.memory_tokens, around
    )
    result = {
        **environment("benchmarks.corpus_job"),
        "naive_dtype": args.naive_dtype,
        "chunks": len(chunks),
        "tokens": tokens,
        "mean_tokens": tokens / len(chunks),
        **found,
        "times_the_naive_way": times_the_naive_way(found["seconds"]),
        "times_the_naive_way_in_processor_time": times_the_naive_way(found["processor_seconds"]),
        "times_the_naive_way_in_operations": asked / needed,
        "tokens_a_processor_second": {
            way: tokens / statistics.median(values) for way, values in found["processor_seconds"].items()
        },
        "padding_share": {"ours": padding, "naive": 1 - (tokens + around * len(chunks)) / padded},
        "utilisation": {
            way: [operations[way] / s / c for s, c in zip(values, found["products_flops"], strict=True)]
            for way, values in found["seconds"].items()
        },
        "whole_job": jobs,
    }
    save(args.output, result, markdown(result))
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
