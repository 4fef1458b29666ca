"""Tiny random language models and a corpus, made in milliseconds: what the tests run the real code on."""

import itertools
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from clara.config.model import Backbone, Lora, Model
from clara.config.tree import Config
from clara.model.checkpoint import fresh_model
from clara.model.model import ClaraModel

HIDDEN_SIZE, NUM_LAYERS, NUM_MEMORY_TOKENS = 32, 2, 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Refuses a system role, as Mistral's first templates do.
WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %} [INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{% endif %}{% endfor %}"
)
_FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
}
_CITIES = ("Arlen", "Brask", "Corvo", "Delmar", "Estry", "Fenwick", "Garlo", "Hestia", "Irvine", "Jorvik")
_RIVERS = ("Tamo", "Ulver", "Vessa", "Wend")


def documents() -> list[dict[str, str]]:
    """Forty short documents, each about another town."""
    rows = []
    for number, (city, river) in enumerate(itertools.product(_CITIES, _RIVERS)):
        text = (
            f"{city} on the {river} is a town of {1000 + 37 * number} people. "
            f"Its mayor is called {city[:3]}{river[-2:]}. "
            f"The bridge over the {river} was built in {1700 + number}, "
            f"and the market sells {('bread', 'salt', 'wool', 'iron')[number % 4]}."
        )
        rows.append({"id": f"doc-{number:02d}", "title": f"{city} on the {river}", "text": text})
    return rows


def write_tokenizer(
    folder: Path, *, template: str | None = CHATML, bos: bool = True, pad: bool = True
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 entries, trained on the corpus, in a model folder."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([row["text"] for row in documents()], trainer)
    names = (
        {"eos_token": "<|im_end|>"}
        | ({"bos_token": "<|im_start|>"} if bos else {})
        | ({"pad_token": "<|endoftext|>"} if pad else {})
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names, additional_special_tokens=specials[:2])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_backbone(
    folder: Path, family: str = "llama", seed: int = 0, *, template: str = CHATML, bos: bool = True, pad: bool = True
) -> Path:
    """A random causal LM with its tokenizer, as a model folder in the transformers format."""
    tokenizer = write_tokenizer(folder, template=template, bos=bos, pad=pad)
    config_class, model_class = _FAMILIES[family]
    config: PreTrainedConfig = config_class(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=family == "llama",
    )
    torch.manual_seed(seed)
    model_class(config).save_pretrained(folder)
    return folder


def settings(backbone: Path, **model: object) -> Config:
    """A configuration for a tiny backbone in float32."""
    shape = {
        "num_memory_tokens": NUM_MEMORY_TOKENS,
        "max_document_tokens": 96,
        "lora": Lora(rank=4, alpha=8.0, dropout=0.0),
    }
    return Config(backbone=Backbone(path=str(backbone), dtype="float32"), model=Model.model_validate(shape | model))


def build_model(backbone: Path, *, seed: int = 1, **model: object) -> ClaraModel:
    """A model whose three adapters do something, each something else: their B is random instead of zero."""
    built = fresh_model(settings(backbone, **model))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in built.backbone.layers.values():
            for pair in layer.adapters.values():
                pair.lora_B.normal_(std=0.05, generator=rng)
    return built


def write_corpus(path: Path) -> Path:
    """The forty documents as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in documents()), encoding="utf-8")
    return path
