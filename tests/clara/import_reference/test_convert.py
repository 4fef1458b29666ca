"""Import of published checkpoints: each published number, generated checkpoints, refusals."""

import io
import json
import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from clara.config.model import Backbone, Model
from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.config.stages import Joint
from clara.errors import InputError
from clara.import_reference import command as import_reference
from clara.import_reference import convert
from clara.import_reference.format import model_settings, read_reference
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint, save_checkpoint
from clara.model.lora import Route
from clara.model.model import ClaraModel
from clara.model.steps import JointBatch, JointStep
from clara.model.topk import flattened_cosine, slot_distributions, straight_through_topk
from clara.storage.manifest import manifest_hash, read_manifest
from tests.helpers import published, tiny
from tests.helpers.published import CASES, Published

SHARED = Path(__file__).parents[4] / "shared" / "reference"
FIXTURES = sorted(path.parent for path in SHARED.glob("*/expected.json"))
TOLERANCE = 1e-4
PLAIN = CASES["mistral-without-separator"]
SMALL = replace(PLAIN, config={"doc_max_length": 30, "compr_rate": 10, "lora_r": 4})


def run(checkpoint: Path, base: Path, output: Path, *arguments: str) -> Path:
    """The command; returns its output."""
    assert (
        import_reference.main(
            ["--checkpoint", str(checkpoint), "--base", str(base), "--output", str(output), *arguments]
        )
        == 0
    )
    return output


@pytest.fixture(scope="module", params=FIXTURES or [None], ids=lambda path: path.name if path else "absent")
def fixture(request: pytest.FixtureRequest) -> Path:
    """A folder with a published checkpoint and its published numbers."""
    if request.param is None:
        pytest.skip(f"no published checkpoint with its numbers in {SHARED}")
    return request.param


@pytest.fixture(scope="module")
def imported_fixture(fixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(fixture / "checkpoint", fixture / "base", tmp_path_factory.mktemp("imported") / "checkpoint")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Base and checkpoint of a small made-up one; tests that damage it work on a copy."""
    return published.make(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def copy(small: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same as a test may damage it."""
    return small[0], Path(shutil.copytree(small[1], tmp_path / "checkpoint"))


def load(checkpoint: Path, base: Path) -> ClaraModel:
    return load_checkpoint(checkpoint, Backbone(path=str(base), dtype="float32")).eval()


# --- parity ----------------------------------------------------------------------------------------------------------


def close(ours: Any, published_numbers: Any, what: str, tolerance: float = TOLERANCE) -> None:
    ours, wanted = (
        np.asarray(torch.as_tensor(v).detach() if isinstance(v, torch.Tensor) else v, float)
        for v in (ours, published_numbers)
    )
    assert ours.shape == wanted.shape, what
    assert np.abs(ours - wanted).max() <= tolerance, f"{what}: {np.abs(ours - wanted).max()}"


def unpadded(ids: Any, mask: Any) -> list[list[int]]:
    return [np.asarray(row)[np.asarray(on) == 1].tolist() for row, on in zip(ids, mask, strict=True)]


def special_ids(model: ClaraModel, config: Mapping[str, Any]) -> dict[str, int]:
    """Ids that the reference gives its tokens: behind the base's vocabulary, in its order."""
    names = [*dict.fromkeys(published.memory_names(config)), "<AE>", "<ENC>", "<SEP>"]
    return {name: len(model.tokenizer) + n for n, name in enumerate(names)}


def check_ids(model: ClaraModel, config: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
    """What is read of documents, questions and prompts, token for token."""
    added = special_ids(model, config)
    memory = [added[name] for name in published.memory_names(config)]
    documents = [text for row in numbers["documents"] for text in row]
    for kind, texts, tokens in (
        ("document", documents, model.document_ids),
        ("query", numbers["questions"], model.question_ids),
    ):
        wanted = unpadded(numbers[f"{kind}_input_ids"], numbers[f"{kind}_attention_mask"])
        assert [[added["<ENC>"], *model.input_ids(tokens(text)), *memory] for text in texts] == wanted
    for question, answer, ids, labels in zip(
        numbers["questions"], numbers["answers"], numbers["prompt_token_ids"], numbers["label_token_ids"], strict=True
    ):
        prompt = model.prompts.question(question, answer)
        assert [*prompt.left, *[*memory, added["<SEP>"]] * numbers["settings"]["top_k"], *prompt.right] == ids
        assert prompt.answer == labels
        assert prompt.weights == [1.0] * len(labels)


def check_numbers(model: ClaraModel, numbers: Mapping[str, Any]) -> None:
    """Memory, scores, selection, loss and greedy tokens, through what users call."""
    questions, answers, k = numbers["questions"], numbers["answers"], numbers["settings"]["top_k"]
    documents = [model.document_ids(text) for row in numbers["documents"] for text in row]
    memory = model.compress(documents)
    close(memory, numbers["document_memory"], "document memory")
    with torch.no_grad():
        encoded = model.encode(documents, COMPRESSOR)
    close((encoded.memory_mean - encoded.text_mean).square().mean(dim=1), numbers["mse_per_document"], "mse")
    query_BMD = model.encode_questions(questions)
    close(query_BMD, numbers["query_memory"], "query memory")
    memory_BNMD = memory.view(len(questions), -1, *memory.shape[1:])
    scores_BN = flattened_cosine(query_BMD, memory_BNMD)
    close(scores_BN, numbers["scores"], "scores")
    for suffix, epsilon in (("", 1e-8), ("_neg_inf", 0.0)):
        z_BKN, indices_BK = straight_through_topk(scores_BN, k, 0.02, mask_epsilon=epsilon)
        assert indices_BK.tolist() == np.asarray(numbers["topk_indices"]).tolist()
        assert torch.equal(z_BKN, torch.nn.functional.one_hot(indices_BK, scores_BN.shape[1]).float())
        close(
            slot_distributions(scores_BN, indices_BK, 0.02, epsilon),
            numbers[f"soft_weights{suffix}"],
            f"soft weights{suffix}",
        )
    selected = [memory_BNMD[row, chosen] for row, chosen in enumerate(indices_BK)]
    prompts = [model.prompts.question(question) for question in questions]
    longest = max(len(ids) for ids in numbers["generated_token_ids"])
    ours = model.generate_ids(prompts, selected, max_new_tokens=longest)
    for ids, generated in zip(ours, numbers["generated_token_ids"], strict=True):
        wanted = list(generated)
        assert ids == wanted[: len(ids)]
        assert set(wanted[len(ids) :]) <= {*model.prompts.stop_ids, model.tokenizer.bos_token_id}, "ours stopped early"
    texts = model.generate(questions, selected, max_new_tokens=longest)
    assert texts == [text.strip() for text in numbers.get("generated_text", texts)]
    with torch.no_grad():
        inputs_BLD, fronts = model.inputs(prompts, selected)
        hidden_BLD = model.backbone.trunk(inputs_BLD, Route(GENERATOR))
        first = model.backbone.logits(hidden_BLD[range(len(prompts)), [front - 1 for front in fronts]])
    close(first, numbers["first_step_logits"], "logits")
    with torch.no_grad():
        losses = model.answer_losses(
            [model.prompts.question(q, a) for q, a in zip(questions, answers, strict=True)], selected
        )
    close(losses.nll.mean(), numbers["ce_loss"], "loss")
    close(-losses.nll, [value for row in numbers["label_logprobs"] for value in row], "log-probabilities")
    likelihood, num_tokens = model.answer_log_likelihood(questions, selected, answers)
    close(likelihood, [sum(row) for row in numbers["label_logprobs"]], "likelihood", 10 * TOLERANCE)
    assert num_tokens.tolist() == [len(row) for row in numbers["label_token_ids"]]


def check_gradients(model: ClaraModel, numbers: Mapping[str, Any]) -> None:
    """Gradients of the joint step, under both masks."""
    questions, k = numbers["questions"], numbers["settings"]["top_k"]
    memory = model.compress([model.document_ids(text) for row in numbers["documents"] for text in row])
    memory_BNMD = memory.view(len(questions), -1, *memory.shape[1:])
    prompts = [model.prompts.question(q, a) for q, a in zip(questions, numbers["answers"], strict=True)]
    batch = JointBatch(
        questions=[model.question_ids(q) for q in questions],
        prompts=prompts,
        memory=memory_BNMD,
        valid=torch.ones(memory_BNMD.shape[:2], dtype=torch.bool),
        positive=torch.zeros(memory_BNMD.shape[:2], dtype=torch.bool),
    )
    model.train_only([QUERY_REASONER, GENERATOR])
    for suffix, epsilon in (("", 1e-8), ("_neg_inf", 0.0)):
        # Without dropout, which a part that trains would have; what gets a gradient is `train_only`'s.
        settings = Joint(
            num_selected=k, temperature=0.02, mask_epsilon=epsilon, train_query_reasoner=False, train_generator=False
        )
        step = JointStep(model, settings)
        query_BMD = model.encode(batch.questions, QUERY_REASONER).memory
        scores_BN = flattened_cosine(query_BMD, memory_BNMD)
        query_BMD.retain_grad()
        scores_BN.retain_grad()
        weights_BKN, indices_BK = straight_through_topk(scores_BN, k, 0.02, mask_epsilon=epsilon)
        nll = model.answer_losses(prompts, step.selected_memories(batch, weights_BKN, indices_BK)).nll
        nll.mean().backward()
        for name, gradient in (("grad_query_memory", query_BMD.grad), ("grad_scores", scores_BN.grad)):
            wanted_gradient = np.asarray(numbers[f"{name}{suffix}"])
            # Gradients differ in size, from hundredths to tens: the tolerance is relative.
            close(gradient, wanted_gradient, f"{name}{suffix}", TOLERANCE * np.abs(wanted_gradient).max())
        model.zero_grad()
        step(batch, batch.weight, len(questions)).loss.backward()
        wanted = numbers[f"grad_adapter_norms{suffix}"]
        for name, role in convert.ROLE_OF.items():
            norm = math.sqrt(
                sum(float(p.grad.square().sum()) for p in model.role_parameters(role) if p.grad is not None)
            )
            if name in wanted and (name != "encoder_adapter" or "query_reasoner_adapter" in wanted):
                assert norm == pytest.approx(wanted[name], rel=TOLERANCE, abs=TOLERANCE), name
        model.zero_grad()


def test_parity_with_the_published_numbers(fixture: Path, imported_fixture: Path):
    """Every number of expected.json and expected.npz within 1e-4; ids, choices and greedy tokens exactly."""
    config = json.loads((fixture / "checkpoint" / "config.json").read_text())
    numbers = json.loads((fixture / "expected.json").read_text()) | dict(np.load(fixture / "expected.npz"))
    model = load(imported_fixture, fixture / "base")
    assert special_ids(model, config).items() <= numbers["special_token_ids"].items()
    check_ids(model, config, numbers)
    check_numbers(model, numbers)
    check_gradients(model, numbers)


def test_the_direct_computation_is_the_published_one(fixture: Path):
    """What made-up checkpoints are compared with gives the published numbers for the published checkpoint."""
    numbers = json.loads((fixture / "expected.json").read_text()) | dict(np.load(fixture / "expected.npz"))
    direct = Published(fixture / "checkpoint", fixture / "base")
    found = direct.expected(
        numbers["questions"], numbers["documents"], numbers["answers"], numbers["settings"]["top_k"]
    )
    for name in (
        "document_input_ids",
        "query_input_ids",
        "document_memory",
        "query_memory",
        "mse_per_document",
        "scores",
        "soft_weights",
        "soft_weights_neg_inf",
        "grad_query_memory",
        "grad_scores_neg_inf",
        "topk_indices",
        "ce_loss",
    ):
        close(found[name], numbers[name], name)
    assert found["prompt_token_ids"] == numbers["prompt_token_ids"]
    assert found["label_token_ids"] == numbers["label_token_ids"]
    num_new = published.NUM_NEW_TOKENS
    assert found["generated_token_ids"] == [list(row[:num_new]) for row in numbers["generated_token_ids"]]


@pytest.mark.parametrize("name", CASES)
def test_a_made_up_checkpoint_computes_what_the_notes_say(tmp_path: Path, name: str):
    """Other families, templates, tokenizers, sizes, memory tokens and adapters, with and without embedding copies."""
    case = CASES[name]
    base, checkpoint = published.make(tmp_path / "published", case)
    direct = Published(checkpoint, base)
    numbers = direct.expected(published.QUESTIONS, published.DOCUMENTS, published.ANSWERS, published.NUM_SELECTED)
    longest = max(len(row) for row in numbers["document_input_ids"])
    assert all(
        mask.sum() == longest for mask in numbers["document_attention_mask"][2:3]
    )  # one text is too long, so that it is cut
    model = load(run(checkpoint, base, tmp_path / "imported"), base)
    check_ids(model, direct.config, numbers)
    check_numbers(model, numbers)
    check_gradients(model, numbers)
    assert model.settings.num_memory_tokens == direct.config["doc_max_length"] // direct.config["compr_rate"]


def test_an_emitted_added_token_is_read_as_the_reference_reads_it(small: tuple[Path, Path], tmp_path: Path):
    """A generated token that only the reference's vocabulary has is read back as that token's embedding."""
    base, checkpoint = small
    layers = torch.load(checkpoint / "decoder_first_last_layers.pth", weights_only=True)
    num_own = len(AutoTokenizer.from_pretrained(base))
    layers["lm_head.weight"][num_own:] *= 6
    louder = Path(shutil.copytree(checkpoint, tmp_path / "louder"))
    torch.save(layers, louder / "decoder_first_last_layers.pth")
    numbers = Published(louder, base).expected(
        published.QUESTIONS, published.DOCUMENTS, published.ANSWERS, published.NUM_SELECTED
    )
    assert sum(token >= num_own for row in numbers["generated_token_ids"] for token in row) >= 4
    check_numbers(load(run(louder, base, tmp_path / "imported"), base), numbers)


# --- the CHECKPOINT that comes of it ---------------------------------------------------------------------------------


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
    memory = model.compress([model.document_ids(text) for text in published.DOCUMENTS[0][:2]])
    assert torch.equal(memory, again.compress([again.document_ids(text) for text in published.DOCUMENTS[0][:2]]))
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
    from pipelines.build_memory.job import resolve_fingerprint

    line = ["--input", "x", "--output", "y", "--checkpoint", str(imported), "--backbone", str(base), "--max-tokens"]
    opened = Checkpoint.open(imported)
    assert resolve_fingerprint(parser().parse_args([*line, "30"]), opened).max_tokens == 30
    with pytest.raises(InputError, match="--max-tokens 31: this checkpoint cuts texts at 30 tokens"):
        resolve_fingerprint(parser().parse_args([*line, "31"]), opened)


# --- what is refused -------------------------------------------------------------------------------------------------


def change_config(checkpoint: Path, **fields: Any) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | fields))


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


# --- vectors ---------------------------------------------------------------------------------------------------------


def reference(tmp_path: Path, **fields: Any) -> Any:
    """The configuration of a checkpoint, read; its tensors are not looked at."""
    config = {
        "different_mem_tokens": True,
        "sep": True,
        "lora_r": 16,
        "doc_max_length": 256,
        "compr_rate": 32,
        "training_stage": "stage2",
    }
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    torch.save({"encoder_adapter": {}, "decoder_adapter": {}}, tmp_path / "adapters.pth")
    torch.save({}, tmp_path / "decoder_first_last_layers.pth")
    return read_reference(tmp_path)


@pytest.mark.parametrize(("rate", "number"), [(4, 64), (16, 16), (32, 8), (64, 4), (128, 2), (256, 1)])
def test_V6_numbers_of_memory_tokens(tmp_path: Path, rate: int, number: int):
    found = reference(tmp_path, compr_rate=rate)
    assert found.num_memory_tokens == model_settings(found).num_memory_tokens == number
    assert found.special_tokens == [*[f"<MEM{i}>" for i in range(number)], "<AE>", "<ENC>", "<SEP>"]


def test_V6_layout_of_a_document(tmp_path: Path):
    """Marker, bos, text, eos, memory tokens: an over-long text takes 259 positions before them, without eos."""
    model = tiny.build_model(tiny.write_backbone(tmp_path / "base"), **model_settings(reference(tmp_path)).model_dump())
    bos, eos = model.tokenizer.bos_token_id, model.tokenizer.eos_token_id
    for length in (1, 255, 256):
        assert model.input_ids([7] * length) == [bos, *[7] * length, eos]
    assert model.input_ids([7] * 256 + [8, 9]) == [bos, *[7] * 256, 8]
    assert 1 + len(model.input_ids([7] * 999)) == 259
    question = "Arlen " * 400
    assert model.input_ids(model.question_ids(question)) == model.input_ids(model.document_ids(question))
    alone = model.compress([[7] * 300])
    assert torch.equal(alone, model.compress([[7] * 257]))
    torch.testing.assert_close(alone[0], model.compress([[7] * 300, [5, 6]])[0], atol=1e-6, rtol=0)


def test_V12_vocabulary_at_rate_32(tmp_path: Path):
    assert 32_000 + len(reference(tmp_path, compr_rate=32).special_tokens) == 32_011
