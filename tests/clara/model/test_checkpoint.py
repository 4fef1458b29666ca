"""CHECKPOINT: stored weights are read back bit for bit; damage or a misfit is an error that names the file."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clara.config.model import Backbone
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.errors import InputError
from clara.model.backbone_files import tokenizer_hash
from clara.model.checkpoint import fresh_model, load_checkpoint, save_checkpoint
from clara.model.lora import Route
from clara.model.model import ClaraModel
from clara.storage.manifest import file_entry, manifest_hash, read_manifest
from tests.helpers import tiny
from tests.helpers.artefacts import verify

FLOAT32 = Backbone(dtype="float32")


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def sign_again(directory: Path) -> None:
    """Give the manifest the files' present sizes and hashes, as whoever tampers with more than one file would."""
    manifest = read_manifest(directory)
    manifest["files"] = [file_entry(directory, f["path"]) for f in manifest["files"]]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def change_manifest(directory: Path, change: Callable[[dict], object]) -> None:
    manifest = read_manifest(directory)
    change(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_comes_back_bit_for_bit(tiny_model: ClaraModel, tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path, stage="instruct", recipe={"a": 1})
    loaded = load_checkpoint(tmp_path, FLOAT32)
    before, after = tiny_model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert loaded.settings == tiny_model.settings
    assert loaded.prompts.prompts == tiny_model.prompts.prompts
    text = tiny_model.document_ids("Arlen on the Tamo")
    assert torch.equal(loaded.compress([text]), tiny_model.compress([text]))


def test_the_same_model_gives_the_same_manifest_hash(tiny_model: ClaraModel, tmp_path: Path):
    for name in ("a", "b"):
        save_checkpoint(tiny_model, tmp_path / name, stage="pretrain", recipe={})
    assert manifest_hash(tmp_path / "a") == manifest_hash(tmp_path / "b")


def test_bfloat16_adapters_come_back_as_they_are_used(tiny_backbone: Path, tmp_path: Path):
    model = tiny.build_model(tiny_backbone)
    save_checkpoint(model, tmp_path, stage="pretrain", recipe={}, dtype=torch.bfloat16)
    loaded = load_checkpoint(tmp_path, Backbone(dtype="bfloat16"))
    for ours, theirs in zip(model.role_parameters(COMPRESSOR), loaded.role_parameters(COMPRESSOR), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.equal(ours.bfloat16().float(), theirs)
    assert torch.isfinite(loaded.compress([loaded.document_ids("Arlen")])).all()


def test_a_query_reasoner_that_is_a_copy_is_stored_once(tiny_model: ClaraModel, tmp_path: Path):
    save_checkpoint(tiny_model, tmp_path, stage="pretrain", recipe={}, separate_query_reasoner=False)
    assert not (tmp_path / "query_reasoner").exists()
    loaded = load_checkpoint(tmp_path, FLOAT32)
    compressor, reasoner = loaded.role_parameters(COMPRESSOR), loaded.role_parameters(QUERY_REASONER)
    assert all(torch.equal(a, b) and a is not b for a, b in zip(compressor, reasoner, strict=True))


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_trained_backbone_is_stored_and_read_from_the_checkpoint(tmp_path: Path, family: str):
    """With tied (Llama) and separate (Phi-3) output embeddings; the folder is one that transformers reads."""
    model = tiny.build_model(tiny.write_backbone(tmp_path / "base", family))
    with torch.no_grad():
        for parameter in model.role_parameters("backbone"):
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_checkpoint(model, tmp_path / "checkpoint", stage="pretrain", recipe={}, store_backbone=True)
    shutil.rmtree(tmp_path / "base")
    moved = Path(shutil.move(tmp_path / "checkpoint", tmp_path / "elsewhere"))
    loaded = load_checkpoint(moved, FLOAT32)
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    plain = AutoModelForCausalLM.from_pretrained(moved / "backbone", dtype=torch.float32)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(
            plain.model(ids).last_hidden_state, loaded.backbone.trunk(loaded.backbone.embed(ids), Route(None))
        )


@pytest.mark.slow
def test_what_storing_an_lm_imports_can_be_imported_ahead(tmp_path: Path):
    """Else training waits for it at its first snapshot."""
    code = f"""
import sys
from transformers import LlamaConfig, LlamaForCausalLM
from clara.model.checkpoint import prepare_to_store_backbone
sizes = {{"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}}
model = LlamaForCausalLM(LlamaConfig(**sizes))
prepare_to_store_backbone()
before = set(sys.modules)
model.save_pretrained({str(tmp_path / "saved")!r})
print(len(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 20


def test_no_pickle_is_written(tiny_checkpoint: Path):
    suffixes = {path.suffix for path in tiny_checkpoint.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".jinja"}


def test_every_file_is_in_the_manifest(tiny_checkpoint: Path):
    listed = {f["path"] for f in verify(tiny_checkpoint, "CHECKPOINT")["files"]}
    assert listed == {str(p.relative_to(tiny_checkpoint)) for p in tiny_checkpoint.rglob("*") if p.is_file()} - {
        "manifest.json"
    }


def test_a_half_written_checkpoint_is_none(copy: Path):
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"checkpoint: no manifest.json.*no finished CHECKPOINT"):
        load_checkpoint(copy)


def test_writing_again_takes_the_old_manifest_away_first(
    copy: Path, tiny_model: ClaraModel, monkeypatch: pytest.MonkeyPatch
):
    """A crash in the middle leaves no manifest that describes a mixture."""

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tiny_model.tokenizer), "save_pretrained", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tiny_model, copy, stage="joint", recipe={})
    assert not (copy / "manifest.json").exists()


@pytest.mark.parametrize(
    "file", ["generator/adapter_model.safetensors", "memory_tokens.safetensors", "tokenizer/tokenizer.json"]
)
def test_one_flipped_bit_is_an_error_that_names_the_file(copy: Path, file: str):
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / file).write_bytes(data)
    with pytest.raises(InputError, match=f"{file}.*sha256.*damaged"):
        load_checkpoint(copy, FLOAT32)


def test_a_missing_file_is_an_error_that_names_it(copy: Path):
    (copy / "compressor" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"compressor/adapter_model.safetensors: missing"):
        load_checkpoint(copy, FLOAT32)


def test_a_missing_adapter_tensor_is_an_error_that_names_the_file(copy: Path):
    path = copy / "generator" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[sorted(tensors)[0]]
    save_file(tensors, path)
    sign_again(copy)
    with pytest.raises(InputError, match=r"generator/adapter_model.safetensors: 1 tensors missing"):
        load_checkpoint(copy, FLOAT32)


@pytest.mark.parametrize("damage", ["shape", "missing", "cut"])
def test_memory_tokens_that_do_not_fit_are_an_error_that_names_the_file(copy: Path, damage: str):
    path = copy / "memory_tokens.safetensors"
    tensors = load_file(path)
    if damage == "shape":
        tensors["memory_tokens"] = tensors["memory_tokens"][:2].contiguous()
    elif damage == "missing":
        del tensors["gate"]
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    sign_again(copy)
    with pytest.raises(InputError, match=r"memory_tokens.safetensors: does not fit"):
        load_checkpoint(copy, FLOAT32)


def test_another_backbone_is_an_error_that_names_both(copy: Path, tmp_path: Path):
    other = tiny.write_backbone(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match=r"checkpoint: made for a backbone with sha256 .*other has .*backbone.path"):
        load_checkpoint(copy, Backbone(path=str(other), dtype="float32"))


def test_the_same_backbone_in_another_folder_will_do(copy: Path, tiny_backbone: Path, tmp_path: Path):
    moved = shutil.copytree(tiny_backbone, tmp_path / "moved")
    loaded = load_checkpoint(copy, Backbone(path=str(moved), dtype="float32"))
    assert loaded.backbone.folder == str(moved)


def test_a_folder_without_weights_is_an_error_that_names_it(copy: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no \*.safetensors"):
        load_checkpoint(copy, Backbone(path=str(tmp_path / "empty")))


def test_settings_that_this_program_does_not_know_are_an_error(copy: Path):
    change_manifest(copy, lambda m: m["model"].update(num_memory_token=3))
    with pytest.raises(
        InputError, match=r"manifest.json: num_memory_token: unknown key; near ones: .*num_memory_tokens"
    ):
        load_checkpoint(copy, FLOAT32)


@pytest.mark.parametrize("field", ["model", "prompts", "backbone", "roles"])
def test_a_manifest_without_a_field_is_an_error_that_names_it(copy: Path, field: str):
    change_manifest(copy, lambda m: m.pop(field))
    with pytest.raises(InputError, match=f"manifest.json.*{field}"):
        load_checkpoint(copy, FLOAT32)


@pytest.mark.parametrize("role", ["../../elsewhere", "missing"])
def test_a_role_is_read_from_inside_the_checkpoint_only(copy: Path, role: str):
    change_manifest(copy, lambda m: m["roles"].update({GENERATOR: role}))
    with pytest.raises(InputError, match=r"manifest.json: roles"):
        load_checkpoint(copy, FLOAT32)


def test_another_kind_of_artefact_is_an_error(copy: Path):
    change_manifest(copy, lambda m: m.update(kind="MEMORY"))
    with pytest.raises(InputError, match="holds MEMORY, expected CHECKPOINT"):
        load_checkpoint(copy)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_an_error(copy: Path):
    with pytest.raises(InputError, match="no CUDA device here"):
        load_checkpoint(copy, FLOAT32, device="cuda")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "cannot be loaded"),
        ("config.json", b'{"model_type": "no such model"}', "cannot be loaded"),
        ("config.json", b"{", "cannot be loaded"),
        ("tokenizer.json", b"{}", "its tokenizer cannot be read"),
        ("tokenizer.json", b'{"version": ', "its tokenizer cannot be read"),
    ],
)
def test_a_damaged_model_folder_is_an_error_that_names_it(tmp_path: Path, file: str, content: bytes, message: str):
    folder = tiny.write_backbone(tmp_path / "base")
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{folder}.*{message}"):
        fresh_model(tiny.settings(folder))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path):
    folder = tiny.write_backbone(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{folder}.*1 weights .* are not in its \*.safetensors \(first: {name}\)"):
        fresh_model(tiny.settings(folder))
    config = json.loads((folder / "config.json").read_text())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    layers = config["num_hidden_layers"]
    changed = {"num_hidden_layers": layers + 1} | ({"layer_types": None} if "layer_types" in config else {})
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(InputError, match=rf"first: model.layers.{layers}\."):
        fresh_model(tiny.settings(folder))


def test_a_tokenizer_that_is_no_json_is_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(InputError, match=r"tokenizer\.json: not JSON"):
        tokenizer_hash(tmp_path)
