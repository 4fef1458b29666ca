"""An imported checkpoint computes the numbers of the published one: ids, vectors, losses, gradients."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.config.stages import Joint
from clara.import_reference import convert
from clara.import_reference.format import model_settings, read_reference
from clara.model.geometry import cosine
from clara.model.joint_batch import JointBatch
from clara.model.lora import Route
from clara.model.model import ClaraModel
from clara.model.steps import JointStep
from clara.model.topk import slot_distributions, straight_through_topk
from tests.helpers import published, published_cases, tiny
from tests.helpers.import_command import load, run
from tests.helpers.published import Published
from tests.helpers.published_cases import CASES

SHARED = Path(__file__).parents[4] / "shared" / "reference"
FIXTURES = sorted(path.parent for path in SHARED.glob("*/expected.json"))
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FIXTURES or [None], ids=lambda path: path.name if path else "absent")
def fixture(request: pytest.FixtureRequest) -> Path:
    """A folder with a published checkpoint and its published numbers."""
    if request.param is None:
        pytest.skip(f"no published checkpoint with its numbers in {SHARED}")
    return request.param


@pytest.fixture(scope="module")
def imported_fixture(fixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(fixture / "checkpoint", fixture / "base", tmp_path_factory.mktemp("imported") / "checkpoint")


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
    scores_BN = cosine(query_BMD, memory_BNMD)
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
        scores_BN = cosine(query_BMD, memory_BNMD)
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
    numbers = direct.expected(
        published_cases.QUESTIONS, published_cases.DOCUMENTS, published_cases.ANSWERS, published.NUM_SELECTED
    )
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
        published_cases.QUESTIONS, published_cases.DOCUMENTS, published_cases.ANSWERS, published.NUM_SELECTED
    )
    assert sum(token >= num_own for row in numbers["generated_token_ids"] for token in row) >= 4
    check_numbers(load(run(louder, base, tmp_path / "imported"), base), numbers)


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
