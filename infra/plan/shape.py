"""Sizes of a causal LM from its config.json or a published name: numbers of weights and of an adapter."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara.errors import InputError


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama family: attention with grouped keys, a gated feed-forward part, two norms a layer.

    Attributes:
        hidden_size: D.
        num_layers: of the trunk.
        num_heads: of queries.
        num_kv_heads: of keys and values.
        head_size: numbers of a head.
        intermediate_size: numbers inside the feed-forward part.
        vocabulary: entries.
        tied: input and output rows are the same.
        fused: one matrix makes queries, keys and values, and one both halves of the gate (Phi-3).
        biased: queries, keys and values have a bias (Qwen2).
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    tied: bool = False
    fused: bool = False
    biased: bool = False

    @property
    def attention_size(self) -> int:
        """Numbers of all heads of queries together."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Numbers of all heads of keys together."""
        return self.num_kv_heads * self.head_size

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear layer of one layer of the trunk."""
        hidden, inside, heads, keys = self.hidden_size, self.intermediate_size, self.attention_size, self.kv_size
        into = [(hidden, heads + 2 * keys)] if self.fused else [(hidden, heads), (hidden, keys), (hidden, keys)]
        gate = [(hidden, 2 * inside)] if self.fused else [(hidden, inside), (hidden, inside)]
        return [*into, (heads, hidden), *gate, (inside, hidden)]

    @property
    def linear_numbers(self) -> int:
        """Weights of all linear layers of the trunk, which each token is multiplied with."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def num_parameters(self) -> int:
        """Numbers of the whole LM."""
        biases = (self.attention_size + 2 * self.kv_size) * self.biased
        rows = self.vocabulary * self.hidden_size * (1 if self.tied else 2)
        return self.linear_numbers + rows + self.num_layers * (2 * self.hidden_size + biases) + self.hidden_size

    def adapter_numbers(self, rank: int) -> int:
        """Numbers of one LoRA adapter of this rank on all linear layers of the trunk."""
        return self.num_layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)


SHAPES = {
    "smollm2-135m": Shape(576, 30, 9, 3, 64, 1536, 49152, tied=True),
    "smollm2-360m": Shape(960, 32, 15, 5, 64, 2560, 49152, tied=True),
    "smollm2-1.7b": Shape(2048, 24, 32, 32, 64, 8192, 49152, tied=True),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14336, 128256),
    "mistral-7b": Shape(4096, 32, 32, 8, 128, 14336, 32000),
    "qwen2.5-7b": Shape(3584, 28, 28, 4, 128, 18944, 152064, biased=True),
    "phi-4-mini": Shape(3072, 32, 24, 8, 128, 8192, 200064, tied=True, fused=True),
}
"""Published models, from their config.json."""


def shape_of(name: str) -> Shape:
    """The shape of a published name, or of a model folder.

    Raises:
        InputError: neither; or its config.json is missing, not JSON, or not of the Llama family.
    """
    if name.lower() in SHAPES:
        return SHAPES[name.lower()]
    file = Path(name) if name.endswith(".json") else Path(name) / "config.json"
    if not file.is_file():
        raise InputError(
            f"--backbone {name!r}: no config.json there; give a folder that holds a causal LM in the transformers "
            f"format, or one of {', '.join(SHAPES)}"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error}); give the config.json of a causal LM") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: holds no object; give the config.json of a causal LM")
    return _from_config(found.get("text_config", found), str(file))


def _from_config(config: Mapping[str, Any], file: str) -> Shape:
    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"{file}: {key} is {value!r}; expected a number, 1 or more, as a model of the Llama family has; "
                f"give another folder, or one of {', '.join(SHAPES)}"
            )
        return value

    hidden, heads, kind = number("hidden_size"), number("num_attention_heads"), str(config.get("model_type", ""))
    return Shape(
        hidden_size=hidden,
        num_layers=number("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=number("num_key_value_heads", heads),
        head_size=number("head_dim", hidden // heads),
        intermediate_size=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        # transformers leaves a setting out of the file where it is the family's default.
        tied=bool(config.get("tie_word_embeddings", False)),
        fused=kind == "phi3",
        biased=kind == "qwen2",
    )
