"""Compressing and answering: invariance to the batch, brute-force twins, and where memories are written."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from clara.config.roles import COMPRESSOR, GENERATOR, QUERY_REASONER, ROLES
from clara.model.checkpoint import fresh_model
from clara.model.lora import Route, routed
from clara.model.model import ClaraModel
from clara.model.slots import segment_shares
from clara.retrieval.long_questions import unread_part, warn_of_cuts
from tests.helpers import tiny
from tests.helpers.fuzz import examples

TEXTS = [row["text"] for row in tiny.documents()[:5]]
VARIANTS = [
    {},
    {"markers": False},
    {"residual": "segment_mean"},
    {"residual": "segment_mean", "query_residual": "question_mean"},
]


def ids(model: ClaraModel, texts: Sequence[str]) -> list[list[int]]:
    """Token lists of very different lengths."""
    return [model.document_ids(text)[: 7 + 23 * n] for n, text in enumerate(texts)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("role", [COMPRESSOR, QUERY_REASONER])
def test_a_text_in_a_batch_is_encoded_as_if_alone(tiny_backbone: Path, variant: dict, role: str):
    model = tiny.build_model(tiny_backbone, **variant).double()
    texts = ids(model, TEXTS)
    with torch.no_grad():
        together = model.encode(texts, role)
        for row, text in enumerate(texts):
            alone = model.encode([text], role)
            for field in ("memory", "memory_mean", "text_mean"):
                torch.testing.assert_close(
                    getattr(together, field)[row], getattr(alone, field)[0], atol=1e-10, rtol=1e-10
                )
        torch.testing.assert_close(
            model.encode(texts[::-1], role).memory.flip(0), together.memory, atol=1e-10, rtol=1e-10
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_the_last_states_of_the_whole_lm_at_the_memory_tokens(tiny_backbone: Path, variant: dict):
    """Brute force: a hand-written sequence, all hidden states of the whole LM, the residual token by token."""
    model = tiny.build_model(tiny_backbone, **variant).double()
    text = model.document_ids(TEXTS[0])
    tokens = torch.tensor([model.tokenizer.bos_token_id, *text, model.tokenizer.eos_token_id])
    embedding = model.backbone.lm.get_input_embeddings().weight
    parts = [embedding[tokens], model.slots.memory_tokens]
    if model.settings.markers:
        parts.insert(0, model.slots.markers[:1])
    with torch.no_grad():
        with routed(Route(COMPRESSOR)):
            states = model.backbone.lm(inputs_embeds=torch.cat(parts)[None], output_hidden_states=True).hidden_states[
                -1
            ][0]
        wanted = states[-4:]
        if model.settings.residual == "segment_mean":
            bounds = [m * len(text) // 4 for m in range(5)]
            means = torch.stack([embedding[torch.tensor(text[a:b])].mean(dim=0) for a, b in itertools.pairwise(bounds)])
            wanted = (
                model.slots.gate[:, None] * wanted / (wanted.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() + means
            )
        got = model.encode([text], COMPRESSOR)
    torch.testing.assert_close(got.memory[0], wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(got.memory_mean[0], states[-4:].mean(dim=0), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(got.text_mean[0], states[:-4].mean(dim=0), atol=1e-10, rtol=1e-10)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 9))
@hypothesis_settings(max_examples=examples(50), deadline=None)
def test_segments_are_averages_that_cover_the_text(counts: list[int], start: int, segments: int):
    shares = segment_shares(counts, start, segments, start + max(counts) + 2)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(len(counts), segments, dtype=torch.float64))
    for row, count in enumerate(counts):
        assert not shares[row, :, :start].any()
        assert not shares[row, :, start + count :].any()
        assert (shares[row].sum(dim=0)[start : start + count] > 0).all()


def test_an_empty_text_has_a_finite_memory(tiny_backbone: Path):
    for variant in VARIANTS:
        model = tiny.build_model(tiny_backbone, **variant)
        assert torch.isfinite(model.compress([[], model.document_ids(TEXTS[0])])).all()


def test_questions_are_cut_and_documents_are_not(tiny_backbone: Path):
    model = tiny.build_model(tiny_backbone, max_question_tokens=5)
    assert len(model.question_ids(TEXTS[0])) == 5
    assert len(model.document_ids(TEXTS[0])) > 20
    assert model.question_ids(TEXTS[0]) == model.document_ids(TEXTS[0])[:5]
    other = tiny.build_model(tiny_backbone, max_question_tokens=5, question_keeps="end")
    assert other.question_ids(TEXTS[0]) == model.document_ids(TEXTS[0])[-5:]
    assert other.question_ids("Who?") == model.question_ids("Who?")


def test_questions_that_are_cut_are_reported_with_a_count(
    tiny_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for keeps, lost in (("beginning", "ends"), ("end", "beginnings")):
        caplog.clear()
        model = tiny.build_model(tiny_backbone, max_question_tokens=20, question_keeps=keeps)
        warn_of_cuts(model, ["Who?", TEXTS[0], "", TEXTS[0]])
        [line] = caplog.messages
        assert line.startswith("2 question(s) have more than the 20 tokens")
        assert f"searched for without their {lost};" in line
        warn_of_cuts(model, ["Who?", "Who is the mayor?"])
        assert len(caplog.messages) == 1
        whole, read = model.document_ids(TEXTS[0]), model.question_ids(TEXTS[0])
        unread = model.document_ids(unread_part(model, TEXTS[0]))
        assert len(unread) == len(whole) - len(read)


def memories(model: ClaraModel, *counts: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    return [torch.randn(k, 4, model.hidden_size, generator=rng).to(model.backbone.dtype) for k in counts]


@pytest.mark.parametrize("markers", [True, False])
def test_V8_slot_writing(tiny_backbone: Path, markers: bool):
    """Document j is at f + j·(M + 1), followed by a marker; everything else keeps its embedding."""
    model = tiny.build_model(tiny_backbone, markers=markers)
    prompt = model.prompts.question("Who?", "Bob")
    (memory,) = memories(model, 3)
    with torch.no_grad():
        inputs_BLD, fronts = model.inputs([prompt], [memory])
    stride, front, row = 4 + markers, len(prompt.left), inputs_BLD[0]
    embed = model.backbone.lm.get_input_embeddings()
    for document in range(3):
        begin = front + document * stride
        assert torch.equal(row[begin : begin + 4], memory[document])
        if markers:
            assert torch.equal(row[begin + 4], model.slots.markers[1])
    assert torch.equal(row[:front], embed(torch.tensor(prompt.left)))
    assert torch.equal(row[front + 3 * stride :], embed(torch.tensor([*prompt.right, *prompt.answer[:-1]])))
    assert fronts == [front + 3 * stride + len(prompt.right)]


def test_answer_losses_equal_the_whole_lm_on_each_row_alone(tiny_backbone: Path):
    """Brute force: every position's logits of the whole LM, one prompt at a time."""
    model = tiny.build_model(tiny_backbone).double()
    questions, answers, ks = (
        ["Who?", "What does the market of Arlen sell?", "Where?"],
        ["Bob", "bread and salt", "On the Tamo."],
        [2, 0, 3],
    )
    prompts = [model.prompts.question(q, a) for q, a in zip(questions, answers, strict=True)]
    given_memories = memories(model, *ks)
    with torch.no_grad():
        losses = model.answer_losses(prompts, given_memories)
        total, counts = model.answer_log_likelihood(questions, given_memories, answers)
        for row, (prompt, memory) in enumerate(zip(prompts, given_memories, strict=True)):
            inputs_1LD, (front,) = model.inputs([prompt], [memory])
            with routed(Route(GENERATOR)):
                log_probabilities = model.backbone.lm(inputs_embeds=inputs_1LD).logits[0].log_softmax(dim=-1)
            wanted = torch.stack([-log_probabilities[front - 1 + i, t] for i, t in enumerate(prompt.answer)])
            torch.testing.assert_close(losses.nll[losses.row == row], wanted, atol=1e-10, rtol=1e-10)
            assert total[row].item() == pytest.approx(-wanted.sum().item(), abs=1e-9)
            assert counts[row] == len(prompt.answer)


def test_the_order_of_the_memories_matters_and_each_is_read(tiny_model: ClaraModel):
    (memory,) = memories(tiny_model, 2)

    def likelihood(m: Tensor) -> float:
        return tiny_model.answer_log_likelihood(["Who?"], [m], ["Bob"])[0].item()

    values = {round(likelihood(m), 4) for m in (memory, memory.flip(0), memory[:1], memory[1:], memory[:0])}
    assert len(values) == 5


def test_greedy_answers_do_not_depend_on_the_batch_and_follow_the_likelihood(tiny_model: ClaraModel):
    questions, given_memories = (
        ["Who?", "What does the market of Arlen on the Vessa sell today?"],
        memories(tiny_model, 3, 1),
    )
    together = tiny_model.generate(questions, given_memories, max_new_tokens=6)
    alone = [tiny_model.generate([q], [m], max_new_tokens=6)[0] for q, m in zip(questions, given_memories, strict=True)]
    assert together == alone
    prompt = tiny_model.prompts.question(questions[0])
    with torch.no_grad():
        inputs_1LD, _ = tiny_model.inputs([prompt], given_memories[:1])
        first = (
            tiny_model.backbone.logits(tiny_model.backbone.trunk(inputs_1LD, Route(GENERATOR))[0, -1]).argmax().item()
        )
    raw = tiny_model.backbone.generate(
        [inputs_1LD[0]], Route(GENERATOR), max_new_tokens=1, stop_ids=tiny_model.prompts.stop_ids
    )
    assert raw == [[first] if first not in tiny_model.prompts.stop_ids else []]


def test_compress_and_encode_questions_use_their_own_adapter_and_leave_no_gradient(tiny_model: ClaraModel):
    text = TEXTS[0]
    memory, query = tiny_model.compress([tiny_model.document_ids(text)]), tiny_model.encode_questions([text])
    assert memory.dtype == query.dtype == torch.float32
    assert not memory.requires_grad
    assert (memory - query).abs().max() > 1e-3


def test_a_fresh_model_is_a_function_of_the_seed(tiny_backbone: Path):
    config = tiny.settings(tiny_backbone)
    first, again, other = fresh_model(config), fresh_model(config), fresh_model(config.model_copy(update={"seed": 7}))
    state, same, different = (m.state_dict() for m in (first, again, other))
    assert all(torch.equal(state[k], same[k]) for k in state)
    assert not torch.equal(state["slots.memory_tokens"], different["slots.memory_tokens"])


@pytest.mark.parametrize(
    "roles", [["generator"], ["query_reasoner", "generator"], ["compressor", "memory_tokens"], ["backbone"]]
)
def test_train_only_names_exactly_what_trains(tiny_model: ClaraModel, roles: list[str]):
    chosen = {id(p) for p in tiny_model.train_only(roles)}
    assert chosen == {id(p) for p in tiny_model.parameters() if p.requires_grad}
    parts = {role: {id(p) for p in tiny_model.role_parameters(role)} for role in (*ROLES, "memory_tokens", "backbone")}
    assert chosen == set().union(*(parts[role] for role in roles))
    assert sum(map(len, parts.values())) == len({id(p) for p in tiny_model.parameters()})
