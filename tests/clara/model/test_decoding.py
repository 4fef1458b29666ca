"""A batch that rows join and leave: each row's tokens are those that it gets alone, and those of transformers."""

from pathlib import Path

import pytest
import torch

from clara.errors import InputError
from clara.model.decoding import Generation, RunningBatch, TextStream, answer_text, generate
from clara.model.model import ClaraModel
from tests.helpers import tiny

QUESTIONS = [
    "Who?",
    "What does the market of Jorvik on the Wend sell, and when was its bridge built?",
    "When, then?",
] * 2
FAMILIES = ("llama", "mistral", "qwen2", "gpt2")


def memories(model: ClaraModel, count: int) -> list[torch.Tensor]:
    """Random memory of a different number of documents for each question, of none for the third."""
    rng = torch.Generator().manual_seed(3)
    sizes = [(2 + number) % 3 + (number == 4) for number in range(count)]
    return [torch.randn(k, model.num_memory_tokens, model.hidden_size, generator=rng) for k in sizes]


def rows_of(model: ClaraModel, limits: list[int]) -> list[Generation]:
    found = memories(model, len(limits))
    prompts = [model.prompts.question(QUESTIONS[number]) for number in range(len(limits))]
    return [Generation(*row) for row in zip(prompts, found, limits, strict=True)]


def alone(model: ClaraModel, limits: list[int]) -> list[list[int]]:
    """Tokens by transformers' own loop, a row at a time."""
    rows = rows_of(model, limits)
    return [
        model.generate_ids([r.prompt], [r.memory], max_new_tokens=r.max_new_tokens)[0]
        for r in rows
        if r.memory is not None
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_each_row_alone(family: str, tmp_path: Path) -> None:
    model = tiny.build_model(tiny.write_backbone(tmp_path, family)).eval()
    limits = [5, 12, 1, 9, 7, 3]
    expected = alone(model, limits)
    for most_at_once in (1, 2, 6):
        assert [row.tokens for row in generate(model, rows_of(model, limits), most_at_once)] == expected


def test_a_sliding_window_slides_for_each_row(tmp_path: Path) -> None:
    folder = tiny.write_backbone(tmp_path, "mistral")
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert '"sliding_window": ' in config
    model = tiny.build_model(folder).eval()
    model.backbone.lm.config.sliding_window = 16  # less than any prompt
    limits = [9, 4, 6]
    expected = alone(model, limits)
    assert [row.tokens for row in generate(model, rows_of(model, limits), 3)] == expected


def test_rows_join_and_leave_between_steps(tiny_model: ClaraModel) -> None:
    limits = [12, 12, 12]
    expected = alone(tiny_model, limits)
    first, second, third = rows_of(tiny_model, limits)
    batch = RunningBatch(tiny_model)
    batch.step()  # of nothing
    batch.join([first])
    batch.step()
    batch.join([second])
    batch.step()
    batch.leave(first)
    batch.leave(first)
    assert batch.rows == [second]
    kept = list(first.tokens)
    batch.join([third])
    while batch.rows:
        batch.step()
    assert first.tokens == kept == expected[0][: len(kept)]
    assert (second.tokens, third.tokens) == (expected[1], expected[2])
    assert second.done
    assert third.memory is None


def test_penalties_of_the_generation_settings_are_applied(tiny_model: ClaraModel) -> None:
    settings = tiny_model.backbone.lm.generation_config
    plain = alone(tiny_model, [12] * 3)
    settings.repetition_penalty, settings.no_repeat_ngram_size = 1.7, 2
    expected = alone(tiny_model, [12] * 3)
    assert expected != plain
    assert [row.tokens for row in generate(tiny_model, rows_of(tiny_model, [12] * 3), 3)] == expected
    settings.suppress_tokens = [5]
    with pytest.raises(InputError, match="sets suppress_tokens, which answering does not apply"):
        RunningBatch(tiny_model)


def test_pieces_of_a_stream_are_the_whole_text(tiny_model: ClaraModel) -> None:
    text = "wool, söld für 3 € – 鉄"
    ids = tiny_model.prompts.text_ids(f" {text} ")
    row = Generation(tiny_model.prompts.question("Who?"), None, len(ids))
    stream, pieces = TextStream(tiny_model, row), []
    for token in ids:
        row.take(token, set())
        pieces.append(stream.more())
        assert "\ufffd" not in pieces[-1]
    assert row.done
    assert "".join(pieces) == text == answer_text(tiny_model, ids)
