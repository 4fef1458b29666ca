"""Bytes that a joint step needs on a GPU, by formula: what a rank holds by ZeRO stage, and the peak of its passes.

Held between updates, with T trained numbers in float32 on G ranks (DeepSpeed's ZeRO, arXiv:1910.02054):

| | weights | gradients | optimiser |
|---|---|---|---|
| one process | all | 4 · T | 8 · T, two moments |
| ZeRO 1, 2 | all | 4 · T / G | 12 · T / G, master weights and two moments |
| ZeRO 3 | all / G | 4 · T / G | 12 · T / G |

Under ZeRO 1 a backward pass makes whole gradients first, and under ZeRO 3 a layer is whole while it is used.
`benchmarks.zero` measures these rows, and a test compares the activations with torch's memory tracker.
"""

from dataclasses import asdict, dataclass

from clara.config.tree import Config
from infra.plan.shape import Shape
from infra.plan.work import Lengths, encoded_length, prompt_length
from training.stages.joint_checks import trained_roles

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
OTHER_BYTES = 2 * 10**9
"""Assumed: CUDA's context, workspaces of matrix products, ZeRO's buckets, and what the allocator cannot use."""
MASK_BYTES = 1
"""Of a number that dropout passes or not: a GPU keeps truth values, a CPU numbers of the LM's type."""
_ROLES = 3


@dataclass(frozen=True)
class Held:
    """Bytes of a rank between two updates."""

    weights: float
    gradients: float
    optimiser: float


def trained_numbers(config: Config, shape: Shape) -> int:
    """Numbers that train in stage `joint`."""
    adapter, mean = shape.adapter_numbers(config.model.lora.rank), config.model.num_memory_tokens * shape.hidden_size
    return sum(mean if role == "question_mean" else adapter for role in trained_roles(config))


def weight_bytes(config: Config, shape: Shape) -> int:
    """Of the frozen LM, the three adapters, and the memory tokens, markers and gate, which are in float32."""
    slots, hidden = config.model.num_memory_tokens, shape.hidden_size
    narrow = shape.num_parameters * DTYPE_BYTES[config.backbone.dtype]
    wide = _ROLES * shape.adapter_numbers(config.model.lora.rank) + (slots + 2) * hidden + slots
    return narrow + 4 * wide


def held(weights: float, trained: float, ranks: int, zero_stage: int) -> Held:
    """What one of `ranks` holds; zero_stage 0: one process without ZeRO.

    Args:
        weights: bytes of all weights.
        trained: numbers that train.
        ranks: that share.
        zero_stage: 0, 1, 2 or 3.
    """
    if not zero_stage:
        return Held(weights, 4 * trained, 8 * trained)
    return Held(weights / ranks if zero_stage == 3 else weights, 4 * trained / ranks, 12 * trained / ranks)


def layer_bytes_per_token(config: Config, shape: Shape) -> float:
    """Bytes that the backward pass of one layer needs of each token.

    Norms keep their input in float32; an adapter keeps the input of its layer, and with dropout a copy of it and its
    mask for each layer; attention keeps queries, keys, values, outputs and a float32 sum for each head; the gate keeps
    both halves, the activated half, and their product.
    """
    size, lora = DTYPE_BYTES[config.backbone.dtype], config.model.lora
    hidden, inside, heads, keys = shape.hidden_size, shape.intermediate_size, shape.attention_size, shape.kv_size
    norms = 2 * 4 * (hidden + 1)
    if lora.dropout:
        inputs = sum(number for number, _ in shape.linears) * (size + MASK_BYTES)
    else:
        inputs = (2 * hidden + heads + inside) * size
    attention = (2 * heads + 2 * keys) * size + 4 * shape.num_heads
    return norms + inputs + attention + 3 * inside * size + len(shape.linears) * lora.rank * size


def activation_bytes(config: Config, shape: Shape, tokens: float) -> float:
    """Bytes that a pass over so many tokens, padding included, keeps until its backward pass is over."""
    size = DTYPE_BYTES[config.backbone.dtype]
    layer, hidden = layer_bytes_per_token(config, shape), shape.hidden_size
    ends = (2 * size + 4) * hidden  # input embeddings, and the last norm's input and output
    if config.backbone.gradient_checkpointing:
        return tokens * (shape.num_layers * size * hidden + ends)
    return tokens * (shape.num_layers * layer + ends)


def logit_bytes(config: Config, shape: Shape, positions: float) -> float:
    """Of the logits of answer tokens: as computed, in float32, their softmax and its gradient."""
    return positions * shape.vocabulary * (2 * DTYPE_BYTES[config.backbone.dtype] + 3 * 4)


def pass_tokens(config: Config, lengths: Lengths) -> list[float]:
    """Tokens of each pass of a micro-batch of the joint step, whose activations are held at once."""
    joint, slots = config.joint, config.model.num_memory_tokens
    found = [encoded_length(lengths.question, slots)]
    if joint.answer_weight:
        found.append(prompt_length(config, lengths))
        if joint.train_compressor:
            found.append(joint.num_selected * encoded_length(lengths.chunk, slots))
    return [joint.micro_batch * tokens for tokens in found]


def passes_bytes(config: Config, shape: Shape, lengths: Lengths) -> float:
    """Peak of a micro-batch beside what is held: activations, logits, adapters in the LM's type, one layer's work.

    In the backward pass through a layer of the longest pass, two gradients inside its feed-forward part are alive, and
    where activations are recomputed its own.
    """
    size, tokens = DTYPE_BYTES[config.backbone.dtype], pass_tokens(config, lengths)
    longest = max(tokens)
    one_layer = longest * (layer_bytes_per_token(config, shape) if config.backbone.gradient_checkpointing else 0)
    gradients = longest * 2 * shape.intermediate_size * size
    copies = trained_numbers(config, shape) * size if size < 4 else 0
    answers = config.joint.micro_batch * lengths.answer if config.joint.answer_weight else 0.0
    return sum(
        (
            activation_bytes(config, shape, sum(tokens)),
            one_layer,
            gradients,
            copies,
            logit_bytes(config, shape, answers),
        )
    )


def per_gpu(config: Config, shape: Shape, lengths: Lengths, ranks: int, zero_stage: int) -> dict[str, float]:
    """Bytes of one GPU by part, and their sum; zero_stage 0: one process."""
    weights, trained = weight_bytes(config, shape), trained_numbers(config, shape)
    parts = asdict(held(weights, trained, ranks, zero_stage))
    if zero_stage == 1:
        parts["gradients"] = 4.0 * trained  # whole, until the backward pass is over
    if zero_stage == 3:
        layer = sum(inputs * outputs for inputs, outputs in shape.linears) * DTYPE_BYTES[config.backbone.dtype]
        parts["layers made whole"] = 2.0 * layer + shape.vocabulary * shape.hidden_size * DTYPE_BYTES["bfloat16"]
    parts["activations and logits"] = passes_bytes(config, shape, lengths)
    parts["other, assumed"] = float(OTHER_BYTES)
    return {**parts, "total": sum(parts.values())}
