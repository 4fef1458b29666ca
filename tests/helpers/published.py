"""Made-up checkpoints in the published format, and what the published implementation computes from one.

Written from the notes on the reference (clara.md) and with nothing of `clara`: the vocabulary really grows, texts
really are padded on the left to their full length, memories are written into the embedded prompt, and the adapters are
added to the LM's matrices.
"""

import json
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.helpers.published_cases import CONFIGS, DOCUMENTS, QUESTIONS, SYSTEM, Case

NUM_SELECTED, NUM_NEW_TOKENS, TEMPERATURE = 2, 8, 0.02


# --- making one ------------------------------------------------------------------------------------------------------


def _write_tokenizer(folder: Path, case: Case) -> None:
    inner = Tokenizer(models.BPE(unk_token="<unk>" if case.words else None))
    if case.words:
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer, inner.decoder = (
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            decoders.Metaspace(prepend_scheme="first"),
        )
        alphabet = sorted(
            {*string.printable.strip(), "\n", *"".join(text for row in DOCUMENTS for text in row)} - {" "}
        )
    else:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(case.specials), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([text for row in DOCUMENTS for text in [*row, *QUESTIONS, SYSTEM]], trainer)
    others = [token for token in case.specials if token not in (case.bos, case.eos)]
    if case.bos is None:  # as a Qwen has it: what opens a turn is its first additional token
        others = ["<|im_start|>", *[token for token in others if token != "<|im_start|>"]]
    names = {"eos_token": case.eos} | ({} if case.bos is None else {"bos_token": case.bos})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names, additional_special_tokens=others)
    tokenizer.chat_template = case.template
    tokenizer.save_pretrained(folder)


def make_base(folder: Path, case: Case, seed: int = 5) -> Path:
    """A random base whose weights bfloat16 holds exactly."""
    folder.mkdir(parents=True)
    _write_tokenizer(folder, case)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = CONFIGS[case.family](
        vocab_size=len(tokenizer) + case.unused_rows,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=case.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).bfloat16().float().save_pretrained(folder)
    return folder


def make(folder: Path, case: Case) -> tuple[Path, Path]:
    """Write a base and a checkpoint for it. Returns their folders."""
    base, checkpoint = make_base(folder / "base", case), folder / "checkpoint"
    checkpoint.mkdir()
    config = {
        "model_type": "CLaRa",
        "decoder_model_name": "base",
        "doc_max_length": 64,
        "compr_rate": 16,
        "lora": True,
        "lora_r": 8,
        "different_mem_tokens": True,
        "sep": True,
        "training_form": "both_separately",
        "training_stage": "stage2",
        "quantization": "no",
        "pure_inference": False,
        "generation_top_k": NUM_SELECTED,
        "max_new_tokens": 128,
        "compr_model_name": None,
        "kbtc_training": False,
        **case.config,
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = grown_tokenizer(config, base)
    rng = torch.Generator().manual_seed(11)
    linear = {
        n: m for n, m in lm.named_modules() if isinstance(m, torch.nn.Linear) and m is not lm.get_output_embeddings()
    }
    adapters = {}
    for name in case.adapters:
        tensors = adapters[name] = {}
        for path, module in linear.items():
            tensors[f"{path}.lora_A.weight"] = 0.3 * torch.randn(config["lora_r"], module.in_features, generator=rng)
            tensors[f"{path}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, config["lora_r"], generator=rng)
    lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    num_own = len(AutoTokenizer.from_pretrained(base))
    layers = {}
    for name, parameter in lm.named_parameters():  # tied matrices come once, as the reference saves them
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            rows = parameter.detach().clone()
            rows[num_own:] = 0.2 * torch.randn(len(tokenizer) - num_own, rows.shape[1], generator=rng)
            layers[name] = rows
    for tensors in adapters.values() if case.copies else ():
        tensors.update({name: rows.clone() for name, rows in layers.items()})
    save_tensors(checkpoint / "adapters.pth", adapters)
    save_tensors(checkpoint / "decoder_first_last_layers.pth", layers)
    return base, checkpoint


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a `.pth` in bfloat16."""

    def stored(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: stored(v) for k, v in value.items()}
        return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value

    torch.save(stored(tensors), path)


# --- computing with one ----------------------------------------------------------------------------------------------


def memory_names(config: Mapping[str, Any]) -> list[str]:
    """The memory tokens of an input, in order (clara.md 1.2)."""
    number = config["doc_max_length"] // config["compr_rate"]
    return [f"<MEM{i}>" if config["different_mem_tokens"] else "<MEM>" for i in range(number)]


def grown_tokenizer(config: Mapping[str, Any], base: Path) -> PreTrainedTokenizerFast:
    """The base's tokenizer as the reference changes it (clara.md 1.2, 1.3, D6)."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left", truncation_side="right")
    opening = list(tokenizer.extra_special_tokens)[:1]
    tokenizer.add_tokens([*dict.fromkeys(memory_names(config)), "<AE>", "<ENC>", "<SEP>"], special_tokens=True)
    if tokenizer.bos_token is None and "qwen" in config["decoder_model_name"].lower():
        tokenizer.bos_token = opening[0]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.bos_token
    return tokenizer


class Published:
    """A checkpoint loaded as the reference loads it, in float32 and without dropout."""

    def __init__(self, checkpoint: Path, base: Path) -> None:
        self.config = json.loads((checkpoint / "config.json").read_text())
        self.tokenizer = grown_tokenizer(self.config, base)
        self.lm = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
        self.lm.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.lm.load_state_dict(
            torch.load(checkpoint / "decoder_first_last_layers.pth", weights_only=True), strict=False
        )
        stored = torch.load(checkpoint / "adapters.pth", weights_only=True)
        self.adapters = {
            name: {key: t.float().requires_grad_() for key, t in tensors.items() if ".lora_" in key}
            for name, tensors in stored.items()
        }
        self.memory_ids = self.tokenizer.convert_tokens_to_ids(memory_names(self.config))

    def run(self, adapter: str, **inputs: Any) -> Any:
        """The whole LM with W + 2 B A for every W that has an adapter."""
        weights = {name: p.detach() for name, p in self.lm.named_parameters()}
        for key, a in self.adapters[adapter].items():
            if key.endswith(".lora_A.weight"):
                name = key.replace("lora_A.", "")
                weights[name] = weights[name] + 2.0 * self.adapters[adapter][key.replace("lora_A", "lora_B")] @ a
        return functional_call(self.lm, weights, kwargs={**inputs, "use_cache": False})

    def compress(self, texts: Sequence[str], adapter: str) -> dict[str, Tensor]:
        """Inputs, memory `[n, M, H]` and the MSE of each text (clara.md 1.3, 1.4, 2.2)."""
        strings = [f"<ENC>{self.tokenizer.bos_token}{text}{self.tokenizer.eos_token}" for text in texts]
        longest = self.config["doc_max_length"] + 3
        found = self.tokenizer(
            strings,
            add_special_tokens=False,
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        tail = torch.tensor(self.memory_ids).expand(len(texts), -1)
        ids, mask = (
            torch.cat([found["input_ids"], tail], 1),
            torch.cat([found["attention_mask"], torch.ones_like(tail)], 1),
        )
        states = self.run(adapter, input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        memory = states[:, -len(self.memory_ids) :]
        text = mask[:, : -len(self.memory_ids), None].float()
        text_mean = (states[:, : -len(self.memory_ids)] * text).sum(1) / text.sum(1)
        return {"ids": ids, "mask": mask, "memory": memory, "mse": (memory.mean(1) - text_mean).square().mean(1)}

    def prompt(self, question: str, num_documents: int, answer: str | None) -> str:
        """A rendered prompt, with the answer in training (clara.md 1.8)."""
        slots = ("".join(memory_names(self.config)) + "<SEP>") * num_documents
        user = f"Background:\n{slots}\n\nQuestion:{question}"
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        said = [] if answer is None else [{"role": "assistant", "content": answer}]
        options = {"tokenize": False, "add_generation_prompt": answer is None, "enable_thinking": False}
        try:
            return self.tokenizer.apply_chat_template(turns + said, **options)
        except TemplateError as error:
            if "System role not supported" not in str(error):
                raise
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": SYSTEM + "\n" + user}, *said], **options
            )

    def embedded(self, ids: Sequence[int], memories: Tensor) -> Tensor:
        """Input embeddings `[1, L, H]` with memories `[k, M, H]` in their slots (clara.md 1.7, D2)."""
        rows = list(self.lm.get_input_embeddings()(torch.tensor(ids)))
        first, number = ids.index(self.memory_ids[0]), len(self.memory_ids)
        stride = number + 1 if self.config["sep"] else number
        for document, memory in enumerate(memories):
            for slot in range(number):
                rows[first + document * stride + slot] = memory[slot]
        return torch.stack(rows)[None]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def greedy(self, ids: Sequence[int], memories: Tensor) -> tuple[Tensor, list[int]]:
        """Logits of the first new token, and greedy tokens up to eos."""
        inputs, found, first = self.embedded(ids, memories), [], None
        while len(found) < NUM_NEW_TOKENS:
            logits = self.run("decoder_adapter", inputs_embeds=inputs).logits[0, -1]
            first = logits if first is None else first
            if int(logits.argmax()) == self.tokenizer.eos_token_id:
                break
            found.append(int(logits.argmax()))
            inputs = torch.cat([inputs, self.lm.get_input_embeddings()(torch.tensor([[found[-1]]]))], 1)
        return first, found

    def expected(
        self, questions: Sequence[str], documents: Sequence[Sequence[str]], answers: Sequence[str], num_selected: int
    ) -> dict[str, Any]:
        """Everything at once, under the names of the published numbers' files."""
        num = len(documents[0])
        reasoner = "query_reasoner_adapter" if "query_reasoner_adapter" in self.adapters else "encoder_adapter"
        with torch.no_grad():
            packed = self.compress([text for row in documents for text in row], "encoder_adapter")
        asked = self.compress(questions, reasoner)
        memory = packed["memory"].view(len(questions), num, *packed["memory"].shape[1:])
        out = {
            "document_input_ids": packed["ids"],
            "document_attention_mask": packed["mask"],
            "query_input_ids": asked["ids"],
            "query_attention_mask": asked["mask"],
            "document_memory": packed["memory"],
            "query_memory": asked["memory"],
            "mse_per_document": packed["mse"],
            "settings": {"top_k": num_selected},
            "generated_token_ids": [],
            "first_step_logits": [],
            "prompt_token_ids": [],
            "label_token_ids": [],
            "label_logprobs": [],
            "questions": questions,
            "documents": documents,
            "answers": answers,
        }
        for suffix, leak in (("", math.log(1e-8)), ("_neg_inf", -math.inf)):
            out |= self._selection(asked["memory"], memory, num_selected, suffix, leak, out)
        out["first_step_logits"] = torch.stack(out["first_step_logits"])
        return out

    def _selection(
        self, query: Tensor, memory: Tensor, k: int, suffix: str, leak: float, out: dict[str, Any]
    ) -> dict[str, Any]:
        """Scores, soft weights, loss and gradients under one mask (clara.md 1.6, 4.3)."""
        for tensors in self.adapters.values():
            for tensor in tensors.values():
                tensor.grad = None
        query.retain_grad()
        query.grad = None
        scores, soft, chosen, nll, tokens = [], [], [], 0.0, 0
        for q, m in zip(query, memory, strict=True):
            scores.append(torch.stack([(q.flatten() @ d.flatten()) / (q.norm() * d.norm()) for d in m]))
        joined = torch.stack(scores)
        joined.retain_grad()
        for row, (question, answer) in enumerate(zip(out["questions"], out["answers"], strict=True)):
            order = sorted(range(memory.shape[1]), key=lambda n: -joined[row, n].item())[:k]
            slots, weights = [], []
            for place, best in enumerate(order):
                blocked = torch.tensor([leak if n in order[:place] else 0.0 for n in range(memory.shape[1])])
                weights.append((joined[row] / TEMPERATURE + blocked).softmax(0))
                blend = (weights[-1][:, None, None] * memory[row]).sum(0)
                slots.append(memory[row, best] + blend - blend.detach())
            chosen.append(order)
            soft.append(torch.stack(weights))
            prompt_ids, target_ids = (
                self.ids(self.prompt(question, k, None)),
                self.ids(self.prompt(question, k, answer)),
            )
            labels = target_ids[len(prompt_ids) :]
            logits = self.run("decoder_adapter", inputs_embeds=self.embedded(target_ids, torch.stack(slots))).logits[0]
            said = logits.log_softmax(-1)[torch.arange(len(prompt_ids) - 1, len(target_ids) - 1), labels]
            nll, tokens = nll - said.sum(), tokens + len(labels)
            if not suffix:
                with torch.no_grad():
                    first, greedy = self.greedy(prompt_ids, memory[row, order])
                for name, value in (
                    ("prompt_token_ids", prompt_ids),
                    ("label_token_ids", labels),
                    ("label_logprobs", said.tolist()),
                ):
                    out[name].append(value)
                out["first_step_logits"].append(first)
                out["generated_token_ids"].append(greedy)
        loss = nll / tokens
        loss.backward(retain_graph=True)
        norms = {
            name: math.sqrt(sum(float(t.grad.square().sum()) for t in tensors.values() if t.grad is not None))
            for name, tensors in self.adapters.items()
        }
        return {
            "scores": joined.detach(),
            "topk_indices": chosen,
            f"soft_weights{suffix}": torch.stack(soft).detach(),
            "ce_loss": loss.item(),
            f"grad_scores{suffix}": joined.grad,
            f"grad_query_memory{suffix}": query.grad.clone(),
            f"grad_adapter_norms{suffix}": norms,
        }
