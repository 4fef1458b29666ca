"""Operations of the passes of a run, by formula: floating-point multiplications and additions, each counts as one.

A token is multiplied with every weight of the trunk's linear layers: 2 operations a weight. Attention adds
4 · layers · heads · head size · L for each token of a row of L tokens: products with all L keys and L values, as
appendix B of PaLM (arXiv:2204.02311) counts them; a causal kernel makes half of these. A backward pass through frozen
weights computes the gradient of the input alone, so that it costs what a forward pass costs, and not twice as much; an
adapter (LoRA, arXiv:2106.09685) costs twice its forward pass. Recomputed activations add a forward pass.

Shapes: L tokens of a row, M memory tokens, K selected, N candidates, D hidden size, V vocabulary.
"""

from dataclasses import dataclass

from clara.config.tree import Config
from infra.plan.shape import Shape

_ENDS = 3  # the marker, bos and eos of a text to compress
PROMPT_TOKENS = 64
"""Of the default prompts in the tokenizers of large LMs, within a few."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of what a run reads.

    Attributes:
        chunk: text of a row of MEMORY.
        question: of a question.
        answer: of an answer.
        prompt: of the chat template and the instructions around documents and question.
    """

    chunk: float
    question: float
    answer: float
    prompt: float = PROMPT_TOKENS


def forward(shape: Shape, length: float, rank: int) -> float:
    """Operations of the trunk over one row of this many tokens, with one adapter (rank 0: none)."""
    weights = 2 * (shape.linear_numbers + shape.adapter_numbers(rank))
    return length * weights + 4 * shape.num_layers * shape.attention_size * length**2


def trained(shape: Shape, length: float, rank: int, *, recomputed: bool) -> float:
    """Operations of forward and backward pass over one row, where the adapter trains and the LM is frozen."""
    once = forward(shape, length, rank)
    weights = 2 * shape.linear_numbers + 4 * shape.adapter_numbers(rank)
    backward = length * weights + 8 * shape.num_layers * shape.attention_size * length**2
    return once * (2 if recomputed else 1) + backward


def encoded_length(tokens: float, num_memory_tokens: int) -> float:
    """Tokens of the pass that compresses a text, or reads a question."""
    return tokens + num_memory_tokens + _ENDS


def prompt_length(config: Config, lengths: Lengths) -> float:
    """Tokens of a prompt with K memories, a question and its answer."""
    slots = config.joint.num_selected * (config.model.num_memory_tokens + int(config.model.markers))
    return lengths.prompt + slots + lengths.question + lengths.answer


def compression(config: Config, shape: Shape, lengths: Lengths) -> float:
    """Operations that compress one row."""
    model = config.model
    return forward(shape, encoded_length(lengths.chunk, model.num_memory_tokens), model.lora.rank)


def joint_question(config: Config, shape: Shape, lengths: Lengths) -> float:
    """Operations of one question in a joint step, with backward pass.

    The query reasoner reads it and the generator answers it; if the compressor trains, K rows are compressed afresh;
    with utilities in the step, the generator reads each of the N candidates.
    """
    joint, model = config.joint, config.model
    rank, again, slots = model.lora.rank, config.backbone.gradient_checkpointing, model.num_memory_tokens
    total = trained(shape, encoded_length(lengths.question, slots), rank, recomputed=again)
    if joint.answer_weight:
        total += trained(shape, prompt_length(config, lengths), rank, recomputed=again)
        total += 2 * 2 * lengths.answer * shape.hidden_size * shape.vocabulary  # logits, and their gradient
    if joint.train_compressor and joint.answer_weight:
        fresh = trained(shape, encoded_length(lengths.chunk, slots), rank, recomputed=again)
        total += joint.num_selected * fresh
    if joint.utility_weight and not config.utilities:
        one = prompt_length(config.model_copy(update={"joint": joint.model_copy(update={"num_selected": 1})}), lengths)
        total += joint.num_candidates * forward(shape, one, rank)
    return total


def reranking(config: Config, shape: Shape, lengths: Lengths) -> float:
    """Operations of a question whose whole pool is encoded afresh (`joint.refresh.rerank`), beside its step."""
    return config.joint.num_candidates * compression(config, shape, lengths)


def answer(config: Config, shape: Shape, lengths: Lengths) -> dict[str, float]:
    """Operations in front of the first token of an answer: from memory, and from the raw text of the same rows.

    Both read the prompt and the question; one also makes a query vector. Writing the answer costs the same in both.
    """
    model, rank = config.model, config.model.lora.rank
    rest = lengths.prompt + lengths.question
    memory = config.joint.num_selected * (model.num_memory_tokens + int(model.markers))
    query = forward(shape, encoded_length(lengths.question, model.num_memory_tokens), rank)
    return {
        "memory": forward(shape, rest + memory, rank) + query,
        "text": forward(shape, rest + config.joint.num_selected * lengths.chunk, 0),
    }
