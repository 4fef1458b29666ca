"""Import of published checkpoints: each published number, generated checkpoints, refusals."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from clara.config.model import Model
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.config.stages import Joint
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import save_checkpoint
from clara.model.lora import Route
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers import published, published_cases, tiny
from tests.helpers.import_command import change_config, load, run
from tests.helpers.published_cases import CASES


@pytest.mark.parametrize("role", ROLES)
def test_adapters_are_plain_peft_folders(small: tuple[Path, Path], tmp_path: Path, role: str):
    base, checkpoint = small
    imported = run(checkpoint, base, tmp_path / "imported")
    model = load(imported, base)
    ids = torch.arange(3, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = plain.model(ids).last_hidden_state
        theirs = PeftModel.from_pretrained(plain, imported / role).eval().get_base_model().model(ids).last_hidden_state
        ours = model.backbone.trunk(model.backbone.embed(ids), Route(role))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - before).abs().max() > 0.01


def test_an_adapter_that_is_missing_because_it_is_a_copy_is_one(tmp_path: Path):
    base, checkpoint = published.make(tmp_path / "published", CASES["qwen-without-bos-padded-vocabulary"])
    imported = run(checkpoint, base, tmp_path / "imported")
    assert read_manifest(imported)["roles"][QUERY_REASONER] == COMPRESSOR
    assert not (imported / QUERY_REASONER).exists()
    model = load(imported, base)
    assert torch.equal(model.compress([[5, 6, 7]]), model.encode([[5, 6, 7]], QUERY_REASONER).memory)


@pytest.mark.parametrize("store_backbone", [False, True])
def test_saved_again_it_computes_the_same(small: tuple[Path, Path], tmp_path: Path, store_backbone: bool):
    base, checkpoint = small
    model = load(run(checkpoint, base, tmp_path / "imported"), base)
    save_checkpoint(model, tmp_path / "again", stage="joint", recipe={}, store_backbone=store_backbone)
    again = load(tmp_path / "again", tmp_path if store_backbone else base)
    assert (tmp_path / "again" / "added_tokens.safetensors").exists() != store_backbone
    memory = model.compress([model.document_ids(text) for text in published_cases.DOCUMENTS[0][:2]])
    assert torch.equal(memory, again.compress([again.document_ids(text) for text in published_cases.DOCUMENTS[0][:2]]))
    likelihoods = [m.answer_log_likelihood(["Who?"], [memory], ["Bob"])[0] for m in (model, again)]
    assert torch.equal(*likelihoods)


def test_no_text_holds_an_added_token(small: tuple[Path, Path], tmp_path: Path):
    """The fault D1 is not taken over: `<MEM0>` in a document is plain text."""
    base, checkpoint = small
    model = load(run(checkpoint, base, tmp_path / "imported"), base)
    for text in ("<MEM0>", "a <SEP> b", "<ENC>"):
        assert max(model.document_ids(text)) < len(model.tokenizer)
        assert model.tokenizer.decode(model.document_ids(text)) == text


def test_importing_again_is_up_to_date_and_something_else_needs_overwrite(
    copy: tuple[Path, Path], tmp_path: Path, capsys
):
    base, checkpoint = copy
    output = run(checkpoint, base, tmp_path / "imported")
    before = manifest_hash(output)
    assert "imported: CHECKPOINT of stage joint" in capsys.readouterr().out
    run(checkpoint, base, output)
    assert "up to date" in capsys.readouterr().out
    shutil.rmtree(output)
    assert manifest_hash(run(checkpoint, base, output)) == before
    change_config(checkpoint, training_stage="stage1")
    with pytest.raises(InputError, match=r"--output .*imported: holds a finished CHECKPOINT.*--overwrite"):
        run(checkpoint, base, output)
    assert manifest_hash(output) == before
    change_config(checkpoint, lora_r=9)
    with pytest.raises(InputError, match="lora_r 9"):
        run(checkpoint, base, output, "--overwrite")
    assert manifest_hash(output) == before  # what cannot be imported replaces nothing
    change_config(checkpoint, lora_r=4)
    assert read_manifest(run(checkpoint, base, output, "--overwrite"))["stage"] == "pretrain"
    with pytest.raises(InputError, match="is one of the inputs"):
        run(checkpoint, base, checkpoint)


def test_a_dry_run_prints_everything_and_writes_nothing(copy: tuple[Path, Path], tmp_path: Path, capsys):
    base, checkpoint = copy
    (checkpoint / "tokenizer.json").write_text("{}")
    run(checkpoint, base, tmp_path / "imported", "--dry-run")
    output = capsys.readouterr().out
    assert not (tmp_path / "imported").exists()
    for line in (
        "encoder_adapter: 28 tensors",
        "<MEM0> to <MEM2>",
        "(<SEP>)",
        "added_tokens.safetensors: output",
        "tokenizer.json",
        "doc_max_length 30",
    ):
        assert line in output
    assert all(line.rstrip().split("  ")[-1].strip() for line in output.splitlines())


def test_the_generator_is_left_out_only_where_that_is_asked_for(small: tuple[Path, Path], tmp_path: Path):
    base, checkpoint = small
    taken, left = run(checkpoint, base, tmp_path / "a"), run(checkpoint, base, tmp_path / "b", "--untrained-generator")
    embedded = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for folder, same in ((taken, False), (left, True)):
            trunk = load(folder, base).backbone.trunk
            assert torch.equal(trunk(embedded, Route(GENERATOR)), trunk(embedded, Route(None))) == same


def test_faults_of_the_reference_are_off_by_default():
    assert (Model().cut_inputs, Model().overlapping_slots, Joint().mask_epsilon) == (False, False, 0.0)
    prompts = tiny.settings(Path()).prompts
    assert (prompts.template_arguments, prompts.keep_system, prompts.whole_tail) == ({}, True, False)


def test_an_imported_memory_is_not_cut_in_silence_by_the_corpus_job(small: tuple[Path, Path], tmp_path: Path):
    base, checkpoint = small
    imported = run(checkpoint, base, tmp_path / "imported")
    from pipelines.build_memory.command import parser
    from pipelines.build_memory.job import inherit_from_update, resolve_fingerprint

    line = ["--input", "x", "--output", "y", "--checkpoint", str(imported), "--backbone", str(base), "--max-tokens"]
    opened = Checkpoint.open(imported)
    fits, exceeds = (inherit_from_update(parser().parse_args([*line, number]), None) for number in ("30", "31"))
    assert resolve_fingerprint(fits, opened).max_tokens == 30
    with pytest.raises(InputError, match="--max-tokens 31: this checkpoint cuts texts at 30 tokens"):
        resolve_fingerprint(exceeds, opened)
