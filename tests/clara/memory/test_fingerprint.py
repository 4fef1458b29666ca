"""What a fingerprint depends on, and what it does not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clara.config.model import Backbone
from clara.errors import InputError
from clara.memory.fingerprint import EncodingSettings, Fingerprint, check, of_checkpoint, of_model
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.model import ClaraModel
from clara.storage.mapped import as_bfloat16, read_floats

FINGERPRINT = Fingerprint("b" * 64, "c" * 64, "t" * 64, "float32", 4, 32, "none", True, 96, 0, 64, 0)
SETTINGS = EncodingSettings(max_tokens=96, overlap_tokens=0, key_size=64, key_seed=0)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Fingerprint)])
def test_every_field_is_in_the_hash_and_in_the_message(name: str) -> None:
    value = getattr(FINGERPRINT, name)
    changed = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else "other"
    other = dataclasses.replace(FINGERPRINT, **{name: changed})
    assert other.hash != FINGERPRINT.hash
    with pytest.raises(InputError, match=name) as caught:
        check([FINGERPRINT], other, "memory/v1")
    assert "memory/v1" in str(caught.value)
    assert f"{name}: expected" in str(caught.value)
    assert str(caught.value).count(": expected") == 1


def test_fields_hashes_and_fingerprints_are_accepted() -> None:
    other = dataclasses.replace(FINGERPRINT, key_seed=9)
    for accepted in (FINGERPRINT, FINGERPRINT.as_dict(), FINGERPRINT.hash):
        check([other, accepted], FINGERPRINT)
        check([accepted], FINGERPRINT.as_dict())
    with pytest.raises(InputError, match=FINGERPRINT.hash[:16]):
        check([other.hash], FINGERPRINT)
    with pytest.raises(InputError, match="nothing is accepted"):
        check([], FINGERPRINT)


def test_another_dtype_is_reported_before_the_compressor_whose_hash_depends_on_it() -> None:
    found = dataclasses.replace(FINGERPRINT, dtype="bfloat16", compressor="d" * 64)
    with pytest.raises(
        InputError, match=r"memory/v1: made in dtype bfloat16, this reader computes in float32: dtype: .*compressor: "
    ) as caught:
        check([FINGERPRINT], found, "memory/v1")
    for remedy in ("set backbone.dtype to bfloat16", "--dtype bfloat16", "build it again with --dtype float32"):
        assert remedy in str(caught.value)
    assert "another compressor" not in str(caught.value)


def test_fields_survive_a_manifest_and_unknown_ones_are_refused() -> None:
    assert Fingerprint.from_dict(FINGERPRINT.as_dict()) == FINGERPRINT
    with pytest.raises(InputError, match="missing fields \\['dtype'\\], unknown fields \\['precision'\\]"):
        Fingerprint.from_dict({("precision" if k == "dtype" else k): v for k, v in FINGERPRINT.as_dict().items()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoint_and_loaded_model_agree(tiny_checkpoint: Path, dtype: str) -> None:
    model = load_checkpoint(tiny_checkpoint, Backbone.model_validate({"dtype": dtype}))
    assert of_model(model, SETTINGS) == of_checkpoint(tiny_checkpoint, dataclasses.replace(SETTINGS, dtype=dtype))


def test_storing_in_the_type_of_use_changes_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    # Adapters train in float32 and are used in bfloat16: stored as either, they compress alike.
    model = load_checkpoint(tiny_checkpoint, Backbone(dtype="bfloat16"))
    save_checkpoint(model, tmp_path / "short", stage="pretrain", recipe={}, dtype=torch.bfloat16)
    found = of_checkpoint(tmp_path / "short", SETTINGS)
    assert found.compressor == of_model(model, SETTINGS).compressor


def test_only_what_compresses_counts(tiny_model: ClaraModel) -> None:
    before = of_model(tiny_model, SETTINGS)
    with torch.no_grad():
        for role in ("generator", "query_reasoner"):
            tiny_model.role_parameters(role)[0].add_(1.0)
        tiny_model.slots.markers[1].add_(1.0)
        tiny_model.slots.gate.add_(1.0)
    assert of_model(tiny_model, SETTINGS) == before
    for parameter in (
        tiny_model.role_parameters("compressor")[0],
        tiny_model.slots.memory_tokens,
        tiny_model.slots.markers,
    ):
        with torch.no_grad():
            parameter[0].add_(0.5)
        after = of_model(tiny_model, SETTINGS)
        assert after.compressor != before.compressor
        before = after


def test_other_backbone_is_refused(tiny_checkpoint: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match="made for a backbone with sha256"):
        of_checkpoint(tiny_checkpoint, SETTINGS, backbone=str(tmp_path))
    assert of_checkpoint(tiny_checkpoint, SETTINGS, backbone=str(tiny_backbone)).num_memory_tokens == 4


def test_numbers_are_rounded_to_bfloat16_as_pytorch_rounds_them() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(70_000, dtype=np.uint32) << 15) | 0x0000_8000  # halfway, to even on both sides
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf])])
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(as_bfloat16(values), expected, equal_nan=True)
    finite = np.isfinite(expected)
    assert as_bfloat16(values)[finite].tobytes() == expected[finite].tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_tensors_are_read_without_pytorch(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"b": torch.randn(3, 5).to(dtype), "a": torch.zeros(0, 4, dtype=dtype), "c": torch.tensor(1.5).to(dtype)}
    save_file(tensors, tmp_path / "some.safetensors")
    found = read_floats(tmp_path / "some.safetensors")
    assert {name: (values.shape, values.tolist()) for name, values in found.items()} == {
        name: (tuple(tensor.shape), tensor.float().tolist()) for name, tensor in tensors.items()
    }
