"""Made-up published checkpoints by family: chat templates, tokenizers and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents "
    "and to answer to questions as briefly "
    "as possible."
)
QUESTIONS = [
    "Which river powers the mill of Arlen?",
    "Who keeps the light on Tern Island, and since when has it been kept, day and night, by one?",
]
ANSWERS = ["the Tamo", "Ida Marlowe"]
DOCUMENTS = [
    [
        "This is a document about Arlen \n The mill of Arlen worked on the river Tamo and makes paper by hand.",
        "Mills.",
        "Copper turns green in the open air; Zürich's cafés are busy on Sundays, "
        "and the baker opens at six every day but one. " * 3,
        "A ferry goes to Tern Island twice a day.",
    ],
    [
        "Ida Marlowe has kept the light on Tern Island since 1871.",
        "Gulls nest there.",
        "  The night train crosses the border before dawn and stops at every station "
        "between the mountains and the coast. " * 3,
        "Bees dance.",
    ],
]
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "phi3": Phi3Config, "qwen2": Qwen2Config}
# Turns in the manner of four families: ids of roles between marks; [INST] with a system text; [INST] that refuses one;
# a loop that drops one.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_NO_THOUGHT = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
THINKING = CHATML.replace("assistant\n", "assistant\n" + _NO_THOUGHT).replace(
    "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}" + _NO_THOUGHT + "{% endif %}{{ m['content'] }}"
)
INST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set head = messages[0]['content'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set head = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ ' [INST] ' + (head if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + INST
)
DROPPING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n"
    "{% elif m['role'] == 'assistant' %}"
    "<|assistant|>\n{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """What a made-up checkpoint is like.

    Attributes:
        family: of its base.
        template: of its chat.
        specials: special tokens of the base's tokenizer.
        bos: among them; None for none.
        eos: among them.
        words: tokens carry a space in front of words, and a text that begins a string gets one (Metaspace); else bytes.
        unused_rows: of the base's vocabulary, beyond its tokenizer's.
        tied: the base has one matrix for input and output.
        adapters: names in adapters.pth.
        copies: each adapter carries copies of the embeddings.
        config: fields of config.json that differ.
    """

    family: str = "llama"
    template: str = CHATML
    specials: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    bos: str | None = "<|im_start|>"
    eos: str = "<|im_end|>"
    words: bool = False
    unused_rows: int = 0
    tied: bool = False
    adapters: tuple[str, ...] = ("decoder_adapter", "encoder_adapter", "query_reasoner_adapter")
    copies: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "llama-tied-copies": Case(tied=True, copies=True, config={"doc_max_length": 40, "compr_rate": 7, "lora_r": 3}),
    "qwen-without-bos-padded-vocabulary": Case(
        family="qwen2",
        template=THINKING,
        bos=None,
        unused_rows=21,
        adapters=("encoder_adapter", "decoder_adapter"),
        config={
            "decoder_model_name": "Qwen/Qwen3-tiny",
            "different_mem_tokens": False,
            "doc_max_length": 33,
            "compr_rate": 8,
            "lora_r": 2,
            "training_stage": "stage1_2",
        },
    ),
    "mistral-words-refusing-copies": Case(
        family="mistral",
        template=REFUSING,
        specials=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        words=True,
        copies=True,
        config={"doc_max_length": 64, "compr_rate": 4, "lora_r": 5, "pad_token_id": 2},
    ),
    "phi-dropping-one-memory-token": Case(
        family="phi3",
        template=DROPPING,
        specials=("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        config={"doc_max_length": 24, "compr_rate": 24, "lora_r": 4},
    ),
    "mistral-without-separator": Case(
        family="mistral",
        template=INST,
        specials=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        config={"sep": False, "doc_max_length": 30, "compr_rate": 10, "lora_r": 4, "training_stage": "stage1"},
    ),
}
