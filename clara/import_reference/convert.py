"""A model with the tensors of a published checkpoint. See `clara.import_reference.command`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clara.config.model import Backbone as BackboneSettings
from clara.config.model import Prompts
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.errors import InputError
from clara.import_reference.files import ADAPTERS, CONFIG, LAYERS
from clara.import_reference.format import Reference, model_settings
from clara.model import lora
from clara.model.backbone import Backbone
from clara.model.backbone_files import load_tokenizer
from clara.model.model import ClaraModel

ROLE_OF = {"encoder_adapter": COMPRESSOR, "query_reasoner_adapter": QUERY_REASONER, "decoder_adapter": GENERATOR}


@dataclass(frozen=True)
class Vocabulary:
    """The reference's vocabulary: the base's rows, then those of the added tokens.

    Attributes:
        ids: added token → its row.
        num_kept: rows that are the base's own.
        input: name and rows `[V, D]` of the input embeddings.
        output: name and rows `[V, D]` of the output matrix.
        tied: the base has one matrix for both.
    """

    ids: dict[str, int]
    num_kept: int
    input: tuple[str, Tensor]
    output: tuple[str, Tensor]
    tied: bool

    @property
    def matrices(self) -> dict[str, Tensor]:
        """Both by name."""
        return dict((self.input, self.output))


def base_tokenizer(reference: Reference, base: Path) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the bos that the reference gives a Qwen that has none (clara.md D6).

    Raises:
        InputError: there is no bos, without which the reference reads nothing.
    """
    tokenizer = load_tokenizer(base)
    if tokenizer.bos_token is None:
        name = str(reference.config.get("decoder_model_name"))
        if "qwen" not in name.lower() or not tokenizer.extra_special_tokens:
            raise InputError(
                f"{base}: the tokenizer has no bos token, and {reference.directory / CONFIG} names {name!r} as "
                "decoder_model_name; the "
                "reference reads every text behind a bos; give the base whose tokenizer the checkpoint was trained with"
            )
        tokenizer.bos_token = str(tokenizer.extra_special_tokens[0])
    return tokenizer


def fit_vocabulary(reference: Reference, backbone: Backbone, base: Path) -> Vocabulary:
    """Find the rows of the added tokens, and make sure that the others are the base's.

    Raises:
        InputError: a matrix is missing, unknown, of another shape than base and added tokens give, or has other rows
            than the base.
    """
    path, lm = reference.directory / LAYERS, backbone.lm
    modules = {"input": lm.get_input_embeddings(), "output": lm.get_output_embeddings()}
    names = {
        use: next(f"{name}.weight" for name, m in lm.named_modules() if m is module) for use, module in modules.items()
    }
    weights = {use: cast(Tensor, module.weight) for use, module in modules.items()}
    tied = weights["input"] is weights["output"]
    unknown = sorted(set(reference.layers) - set(names.values()))
    if unknown:
        raise InputError(
            f"{path}: unknown tensor {', '.join(unknown)}, {base} has {', '.join(names.values())}; "
            "take the checkpoint's own base"
        )
    tokenizer = load_tokenizer(base)
    num_own = len(tokenizer)
    tokenizer.add_tokens(reference.special_tokens, special_tokens=True)
    shape = [len(tokenizer), backbone.hidden_size]
    rows = {}
    for use, name in names.items():
        found = reference.layers.get(names["input"] if tied and name not in reference.layers else name)
        if found is None:
            raise InputError(f"{path}: {name} missing, expected {shape}; take a checkpoint that was saved whole")
        if list(found.shape) != shape:
            raise InputError(
                f"{path}: {name} is {list(found.shape)}, expected {shape}: "
                f"{num_own} tokens of {base} and {shape[0] - num_own} added ones "
                f"({reference.special_tokens[0]} … <SEP>: doc_max_length // compr_rate = {reference.num_memory_tokens} "
                f"memory tokens), width {backbone.hidden_size}; give the checkpoint's own base, or correct {CONFIG}"
            )
        rows[use] = found
    num_kept = min(num_own, weights["input"].shape[0])
    for use, name in names.items():
        _check_same(
            path,
            name,
            rows[use][:num_kept],
            weights[use][:num_kept],
            f"the rows of {base}",
            "give the base that it was trained on",
        )
    if tied:
        _check_same(
            path,
            names["output"],
            rows["output"],
            rows["input"],
            f"{names['input']}, as {base} ties both",
            "take an intact checkpoint",
        )
    ids = {token: cast(int, tokenizer.convert_tokens_to_ids(token)) for token in reference.special_tokens}
    return Vocabulary(ids, num_kept, (names["input"], rows["input"]), (names["output"], rows["output"]), tied)


def _check_same(path: Path, name: str, found: Tensor, wanted: Tensor, what: str, remedy: str) -> None:
    """Refuse rows that differ once both are rounded to the coarser of their types."""
    if found.shape == wanted.shape:
        coarser = max(found.dtype, wanted.dtype, key=lambda dtype: torch.finfo(dtype).eps)
        found, wanted = found.to(coarser), wanted.to(coarser)
        if torch.equal(found, wanted):
            return
    if found.shape != wanted.shape:
        raise InputError(f"{path}: {name} is {list(found.shape)}, expected {list(wanted.shape)} like {what}; {remedy}")
    far = (found.float() - wanted.float()).abs().amax(dim=-1)
    raise InputError(
        f"{path}: {name} differs from {what} in {int((far > 0).sum())} of {len(far)} rows (first: "
        f"row {int(far.nonzero()[0])}, at most {float(far.max()):.3g}), expected equal ones; {remedy}"
    )


def lora_tensors(
    reference: Reference, name: str, vocabulary: Vocabulary, wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The LoRA tensors of one adapter; copies of embeddings that it carries are compared, and left.

    Args:
        reference: the checkpoint.
        name: the adapter's name there.
        vocabulary: as returned by `fit_vocabulary`.
        wanted: the base's parameters by the reference's names.

    Raises:
        InputError: a tensor is missing, unknown, or of another shape, or a copy is none.
    """
    path, found = reference.directory / ADAPTERS, reference.adapters[name]
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise InputError(
            f"{path}: {name} lacks {len(missing)} of {len(wanted)} tensors (first: {missing[0]}); "
            "expected an A and a B of every linear layer "
            "of the base's trunk; give the checkpoint's own base, or take a checkpoint that was saved whole"
        )
    unknown = sorted(found.keys() - wanted.keys() - vocabulary.matrices.keys())
    if unknown:
        raise InputError(
            f"{path}: {name} has {len(unknown)} unknown tensors (first: {unknown[0]}, "
            f"{list(found[unknown[0]].shape)}); expected LoRA's A and B "
            f"of the base's linear layers and copies of {' and '.join(vocabulary.matrices)}; "
            "give the checkpoint's own base"
        )
    for key, parameter in wanted.items():
        if found[key].shape != parameter.shape:
            raise InputError(
                f"{path}: {name}/{key} is {list(found[key].shape)}, expected {list(parameter.shape)} from the base and "
                "lora_r "
                f"{reference.config['lora_r']} in {CONFIG}; give the checkpoint's own base, or correct lora_r"
            )
    for key, matrix in vocabulary.matrices.items():
        if key in found:
            _check_same(
                path,
                f"{name}/{key}",
                found[key],
                matrix,
                f"{key} in {LAYERS}",
                "decide which of them holds, and save it in both places",
            )
    return {key: found[key] for key in wanted}


@dataclass(frozen=True)
class Imported:
    """The imported model.

    Attributes:
        separate_query_reasoner: whether the query reasoner has an adapter that differs from the compressor's.
        rows: (source, content, destination) of everything that was imported.
    """

    model: ClaraModel
    separate_query_reasoner: bool
    rows: list[tuple[str, str, str]]


def convert(reference: Reference, base: Path, *, untrained_generator: bool = False) -> Imported:
    """A model with the reference's numbers.

    Args:
        reference: as returned by `read_reference`.
        base: folder of the LM that it was trained on.
        untrained_generator: leave `decoder_adapter` out, as the reference does when it loads a `stage1_2` checkpoint
            (clara.md C1).

    Raises:
        InputError: the checkpoint does not fit the base.
    """
    settings = model_settings(reference)
    prompts = Prompts(template_arguments={"enable_thinking": False}, keep_system=False, whole_tail=True)
    shape = settings.lora
    backbone = Backbone.load(BackboneSettings(path=str(base), dtype=reference.dtype), shape, ROLES)
    vocabulary = fit_vocabulary(reference, backbone, base)
    rows: list[tuple[str, str, str]] = []
    for name, role in ROLE_OF.items():
        if name not in reference.adapters:
            lora.copy_adapter(backbone.layers, COMPRESSOR, role)
            rows.append((ADAPTERS, f"no {name}: the encoder's is taken for it", f"{COMPRESSOR}/"))
            continue
        wanted = {
            key.removeprefix(lora.PREFIX): parameter
            for key, parameter in lora.adapter_tensors(backbone.layers, role, backbone.trunk_path).items()
        }
        found = lora_tensors(reference, name, vocabulary, wanted)
        num_numbers = sum(t.numel() for t in found.values())
        types, scale = _types(found.values()), shape.alpha / shape.rank
        what = f"{name}: {len(found)} tensors, {num_numbers:,} numbers, {types}, r {shape.rank}, scale {scale:g}"
        if role == GENERATOR and untrained_generator:
            lora.restart_adapter(backbone.layers, role)
            rows.append((ADAPTERS, what, "left (--untrained-generator)"))
        else:
            with torch.no_grad():
                for key, parameter in wanted.items():
                    parameter.copy_(found[key])
            rows.append((ADAPTERS, what, f"{role}/"))
        for key in sorted(vocabulary.matrices.keys() & reference.adapters[name].keys()):
            rows.append((ADAPTERS, f"{name}: {key}, equal to that in {LAYERS}", "left"))
    model = ClaraModel(backbone, base_tokenizer(reference, base), settings, prompts)
    rows += _place_tokens(reference, model, vocabulary)
    return Imported(model, "query_reasoner_adapter" in reference.adapters, rows)


def _types(tensors: Iterable[Tensor]) -> str:
    return "/".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors}))


def _place_tokens(reference: Reference, model: ClaraModel, vocabulary: Vocabulary) -> list[tuple[str, str, str]]:
    """Write the added tokens' rows into the model's slots and its LM. Returns what came from where."""
    input_VD, num_kept, ids = vocabulary.input[1], vocabulary.num_kept, vocabulary.ids
    positions = [ids[token] for token in reference.special_tokens[:-3]]
    repeated = [positions[m % len(positions)] for m in range(reference.num_memory_tokens)]
    with torch.no_grad():
        model.slots.memory_tokens.copy_(input_VD[repeated])
        model.slots.markers.copy_(input_VD[[ids["<ENC>"], ids["<SEP>"]]])
    model.backbone.extend_vocabulary(num_kept, input_VD[num_kept:], vocabulary.output[1][num_kept:])
    name, output_name = vocabulary.input[0], vocabulary.output[0]
    memory = (
        f"<MEM0> to <MEM{len(positions) - 1}>"
        if reference.config["different_mem_tokens"]
        else f"<MEM>, {len(repeated)} times"
    )
    last = len(input_VD) - 1
    rows = [
        (LAYERS, f"{name}: rows 0 to {num_kept - 1}, equal to the base's", "left"),
        (
            LAYERS,
            f"{name}: rows {min(positions)} to {max(positions)} ({memory})",
            "memory_tokens.safetensors: memory_tokens",
        ),
        (LAYERS, f"{name}: rows {ids['<ENC>']} (<ENC>), {ids['<SEP>']} (<SEP>)", "memory_tokens.safetensors: markers"),
        (LAYERS, f"{name}: rows {num_kept} to {last} (all added tokens)", "added_tokens.safetensors: input"),
    ]
    if output_name in reference.layers:
        rows.append((LAYERS, f"{output_name}: rows 0 to {num_kept - 1}, equal to the base's", "left"))
    source = (
        f"{output_name}: rows {num_kept} to {last}"
        if output_name in reference.layers
        else f"{name}, which the base ties to its output"
    )
    return [*rows, (LAYERS, source, "added_tokens.safetensors: output")]
