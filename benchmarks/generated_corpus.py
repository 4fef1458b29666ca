"""A corpus of any size and a tiny model that reads it, to measure a corpus job whose text does not matter.

Documents are drawn from a seeded vocabulary of very long words, each of them one token of a tokenizer that splits at
white space: tokenising is what reading a corpus takes longest for, and its memory does not depend on the words. A share
of the documents are exact duplicates.
"""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clara.config.model import Backbone, Lora, Model
from clara.config.tree import Config
from clara.model.checkpoint import fresh_model, save_checkpoint

NUM_WORDS = 500
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def words(seed: int = 0) -> list[str]:
    """The vocabulary: words of 60 to 120 letters."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(60, 120))) for _ in range(NUM_WORDS)]


def write_model(
    folder: Path, *, hidden_size: int = 8, num_layers: int = 1, num_memory_tokens: int = 1, max_tokens: int = 256
) -> Path:
    """A CHECKPOINT of a random Llama with a tokenizer that knows the vocabulary's words whole. Returns its folder."""
    specials = ["<|pad|>", "<|start|>", "<|end|>"]
    pieces = [*specials, "?", *words()]
    inner = Tokenizer(models.WordLevel(vocab={piece: position for position, piece in enumerate(pieces)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|start|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=specials,
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder / "backbone")
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2 * max_tokens,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder / "backbone")
    config = Config(
        backbone=Backbone(path=str(folder / "backbone"), dtype="float32"),
        model=Model(
            num_memory_tokens=num_memory_tokens,
            max_document_tokens=max_tokens,
            lora=Lora(rank=1, alpha=1.0, dropout=0.0),
        ),
    )
    save_checkpoint(fresh_model(config), folder / "checkpoint", stage="pretrain", recipe={"made_by": "benchmarks"})
    return folder / "checkpoint"


def write_corpus(path: Path, num_bytes: int, *, mean_words: int = 30, duplicates: float = 0.02, seed: int = 0) -> int:
    """One JSONL file of at least so many bytes. Returns the number of documents.

    Args:
        path: the file.
        num_bytes: its size, at least.
        mean_words: of a document; lengths are spread from half to one and a half of it.
        duplicates: share of the documents whose text is that of one before.
        seed: of the draw.
    """
    rng, vocabulary = random.Random(seed), words()
    written = number = 0
    text = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as stream:
        while written < num_bytes:
            if not text or rng.random() >= duplicates:
                drawn = rng.choices(
                    vocabulary, k=rng.randint(max(1, mean_words // 2), 2 * mean_words - mean_words // 2)
                )
                text = f"Number {seed}.{number}. " + " . ".join(
                    " ".join(drawn[position : position + 12]) for position in range(0, len(drawn), 12)
                )
            written += stream.write(json.dumps({"id": f"{seed}-{number}", "text": text}) + "\n")
            number += 1
    return number
