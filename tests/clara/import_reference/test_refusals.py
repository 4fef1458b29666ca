"""Published checkpoints that cannot be imported: what the error names, and that no code of a file runs."""

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clara.errors import InputError
from tests.helpers import published
from tests.helpers.import_command import SMALL, change_config, run


def change_tensors(checkpoint: Path, change: Callable[[dict], object], file: str = "adapters.pth") -> None:
    tensors = torch.load(checkpoint / file, weights_only=True)
    change(tensors)
    torch.save(tensors, checkpoint / file)


A = "model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("decoder_adapter"),
            r"adapters.pth: decoder_adapter missing, found encoder_adapter, query_reasoner_adapter",
        ),
        (lambda t: t.pop("encoder_adapter"), r"adapters.pth: encoder_adapter missing"),
        (
            lambda t: t.update(reasoner_adapter=t.pop("query_reasoner_adapter")),
            r"adapters.pth: unknown adapter reasoner_adapter, known are encoder_adapter",
        ),
        (lambda t: t["encoder_adapter"].pop(A), rf"adapters.pth: encoder_adapter lacks 1 of 28 tensors \(first: {A}\)"),
        (lambda t: t["query_reasoner_adapter"].clear(), r"adapters.pth: query_reasoner_adapter lacks 28 of 28 tensors"),
        (
            lambda t: t["decoder_adapter"].update({"model.layers.2.mlp.up_proj.lora_A.weight": torch.zeros(4, 48)}),
            r"decoder_adapter has 1 unknown tensors \(first: model.layers.2.*\[4, 48\]",
        ),
        (
            lambda t: t["decoder_adapter"].update({A: torch.zeros(5, 48)}),
            rf"decoder_adapter/{A} is \[5, 48\], expected \[4, 48\] .*lora_r 4",
        ),
        (
            lambda t: t["decoder_adapter"].update({A: torch.zeros(4, 48, dtype=torch.int8)}),
            rf"decoder_adapter/{A} has type torch.int8.*quantised",
        ),
        (lambda t: t["decoder_adapter"][A].fill_(math.nan), rf"decoder_adapter/{A} holds numbers that are not finite"),
        (
            lambda t: t["decoder_adapter"].update({A: "text"}),
            rf"decoder_adapter/{A} is 'text', a str, expected a tensor",
        ),
        (
            lambda t: t.update(encoder_adapter=torch.zeros(2)),
            r"encoder_adapter is a Tensor, expected a table of tensors",
        ),
        (
            lambda t: t["encoder_adapter"].update({"lm_head.weight": torch.zeros(3, 48)}),
            r"encoder_adapter/lm_head.weight is \[3, 48\], expected",
        ),
        (
            lambda t: t["encoder_adapter"].update({"model.norm.weight": torch.zeros(48)}),
            r"encoder_adapter has 1 unknown tensors \(first: model.norm.weight",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_an_error_that_names_them(
    copy: tuple[Path, Path], tmp_path: Path, change: Callable, message: str
):
    base, checkpoint = copy
    change_tensors(checkpoint, change)
    with pytest.raises(InputError, match=message):
        run(checkpoint, base, tmp_path / "imported")
    assert not (tmp_path / "imported" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"layers.pth: lm_head.weight missing, expected \[\d+, 48\]"),
        (lambda t: t.pop("model.embed_tokens.weight"), r"layers.pth: model.embed_tokens.weight missing"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(48)}), r"layers.pth: unknown tensor model.norm.weight"),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-1]}),
            r"lm_head.weight is \[(\d+), 48\], expected \[\d+, 48\]: \d+ tokens of .* and 6 added ones",
        ),
        (
            lambda t: t["model.embed_tokens.weight"][7].add_(1),
            r"model.embed_tokens.weight differs from the rows of .*base in 1 of \d+ rows \(first: row 7",
        ),
        (
            lambda t: t["lm_head.weight"][7].add_(1),
            r"lm_head.weight differs from the rows of .*give the base that it was trained on",
        ),
    ],
)
def test_layers_that_do_not_fit_are_an_error_that_names_them(
    copy: tuple[Path, Path], tmp_path: Path, change: Callable, message: str
):
    base, checkpoint = copy
    change_tensors(checkpoint, change, "decoder_first_last_layers.pth")
    with pytest.raises(InputError, match=message):
        run(checkpoint, base, tmp_path / "imported")


def test_a_copy_of_embeddings_that_is_none_is_an_error(tmp_path: Path):
    base, checkpoint = published.make(tmp_path / "published", replace(SMALL, copies=True))
    run(checkpoint, base, tmp_path / "imported")
    change_tensors(checkpoint, lambda t: t["decoder_adapter"]["lm_head.weight"][-1].add_(0.5))
    with pytest.raises(
        InputError,
        match=r"adapters.pth: decoder_adapter/lm_head.weight differs from lm_head.weight in decoder_first_last",
    ):
        run(checkpoint, base, tmp_path / "imported", "--overwrite")


def test_copies_of_embeddings_may_be_stored_in_another_type(tmp_path: Path):
    base, checkpoint = published.make(tmp_path / "published", replace(SMALL, copies=True))

    def exact(tensors: Any) -> None:
        for adapter in tensors.values():
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                adapter[name] = adapter[name].float()

    def coarse(tensors: Any) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    change_tensors(checkpoint, exact)
    change_tensors(checkpoint, coarse, "decoder_first_last_layers.pth")
    run(checkpoint, base, tmp_path / "imported")
    change_tensors(checkpoint, lambda t: t["decoder_adapter"]["lm_head.weight"][-1].add_(0.5))
    with pytest.raises(InputError, match=r"adapters.pth: decoder_adapter/lm_head.weight differs .* in 1 of"):
        run(checkpoint, base, tmp_path / "imported", "--overwrite")


def test_another_base_is_an_error(copy: tuple[Path, Path], tmp_path: Path):
    other = published.make_base(tmp_path / "other", SMALL, seed=6)
    with pytest.raises(
        InputError, match=r"model.embed_tokens.weight differs from the rows of .*give the base that it was trained on"
    ):
        run(copy[1], other, tmp_path / "imported")


@pytest.mark.parametrize("file", ["config.json", "adapters.pth", "decoder_first_last_layers.pth"])
def test_a_missing_file_is_an_error_that_names_it(copy: tuple[Path, Path], tmp_path: Path, file: str):
    (copy[1] / file).unlink()
    with pytest.raises(InputError, match=rf"checkpoint/{file}: (missing|cannot be read)"):
        run(copy[1], copy[0], tmp_path / "imported")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization": "int8"}, "quantization is 'int8', supported is \"no\""),
        ({"lora": False}, "lora is False, supported is true"),
        ({"training_form": "both"}, "training_form is 'both'"),
        ({"kbtc_training": True}, "kbtc_training is True"),
        ({"training_stage": "stage3"}, "training_stage is 'stage3', supported is \"stage1\""),
        ({"compr_rate": 0}, "compr_rate is 0, expected a whole number of at least 1"),
        ({"compr_rate": 31}, "doc_max_length 30 // compr_rate 31 leaves no memory token"),
        ({"compr_rate": 15}, r"\] added ones|and 5 added ones"),
        ({"different_mem_tokens": False}, "and 4 added ones"),
        ({"lora_r": 8}, "expected .* lora_r 8"),
        ({"lora_r": 4.0}, "lora_r is 4.0, expected a whole number"),
        ({"sep": "yes"}, "sep is 'yes', expected true or false"),
        ({"mem_pooling": "mean"}, "mem_pooling is 'mean', an unknown field .*--ignore mem_pooling"),
    ],
)
def test_a_configuration_that_is_not_supported_is_an_error(
    copy: tuple[Path, Path], tmp_path: Path, fields: dict, message: str
):
    change_config(copy[1], **fields)
    with pytest.raises(InputError, match=message):
        run(copy[1], copy[0], tmp_path / "imported")


def test_a_configuration_without_a_needed_field_is_an_error_and_an_unknown_one_can_be_allowed(
    copy: tuple[Path, Path], tmp_path: Path
):
    base, checkpoint = copy
    change_config(checkpoint, house_style="blue")
    run(checkpoint, base, tmp_path / "imported", "--ignore", "house_style")
    config = json.loads((checkpoint / "config.json").read_text())
    del config["sep"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"config.json: sep missing"):
        run(checkpoint, base, tmp_path / "imported")
    (checkpoint / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config.json: holds a list"):
        run(checkpoint, base, tmp_path / "imported")
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        run(checkpoint, base, tmp_path / "imported")


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def test_code_in_a_file_is_not_run(copy: tuple[Path, Path], tmp_path: Path):
    base, checkpoint = copy
    for attack in (
        lambda path: torch.save({"encoder_adapter": Attack(tmp_path / "harm")}, path),
        lambda path: path.write_bytes(pickle.dumps(Attack(tmp_path / "harm"))),
    ):
        attack(checkpoint / "adapters.pth")
        with pytest.raises(InputError, match=r"adapters.pth: cannot be read as plain tensors.*code is not run"):
            run(checkpoint, base, tmp_path / "imported")
        assert not (tmp_path / "harm").exists()
    pickle.loads((checkpoint / "adapters.pth").read_bytes())
    assert (tmp_path / "harm").exists()  # the attack is a real one


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "zip"])
def test_a_damaged_file_is_an_error_that_names_it(copy: tuple[Path, Path], tmp_path: Path, damage: str):
    path = copy[1] / "decoder_first_last_layers.pth"
    junk = io.BytesIO()
    with zipfile.ZipFile(junk, "w") as archive:
        archive.writestr("a", "b")
    path.write_bytes(
        {"cut": path.read_bytes()[:999], "empty": b"", "text": b"version https://git-lfs", "zip": junk.getvalue()}[
            damage
        ]
    )
    with pytest.raises(InputError, match=r"decoder_first_last_layers.pth: cannot be read as plain tensors"):
        run(copy[1], copy[0], tmp_path / "imported")
