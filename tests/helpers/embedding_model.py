"""A tiny sentence-transformers folder."""

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from tests.helpers import tiny

SIZE = 16
_TYPES = ("Transformer", "Pooling", "Normalize")


def write(folder: Path, seed: int = 3) -> Path:
    """A random BERT of one layer, mean pooling, unit length."""
    tokenizer = tiny.write_tokenizer(folder, template=None)
    torch.manual_seed(seed)
    shape = {
        "hidden_size": SIZE,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "initializer_range": 0.5,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)).save_pretrained(
        folder
    )
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(zip(paths, _TYPES, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": False}))
    for path in paths[1:]:
        (folder / path).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True})
    )
    return folder
