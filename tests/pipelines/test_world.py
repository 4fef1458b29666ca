"""The small world: similarity misleads, memorising does not help, held-out names are new together."""

import json
from itertools import pairwise

import pytest

from clara.config.load import load
from clara.config.world import World
from clara.data.questions import read_questions
from clara.errors import InputError
from clara.model.backbone_files import load_tokenizer
from clara.model.prompts import PromptBuilder
from clara.retrieval.bm25 import Bm25
from pipelines.world import command as world
from pipelines.world import text

SIZES = World(train=200, held_out=40, pretrain=60)


@pytest.fixture(scope="module")
def made():
    documents, questions, examples = world.generate(3, SIZES)
    return {d["id"]: d["text"] for d in documents}, questions, examples


def test_pools_hold_one_answer_four_decoys_and_fifteen_others(made):
    texts, questions, _ = made
    assert len(questions) == 200 + 2 * 40
    assert len(set(texts.values())) == len(texts)
    for question in questions:
        pool = [texts[c] for c in question.candidate_ids]
        assert len(pool) == len(set(pool)) == world.POOL_SIZE
        (answer,) = question.answers
        assert [c for c in question.candidate_ids if answer in texts[c].split()] == list(question.positive_ids)
        repeating = [t for t in pool if question.question in t]
        assert len(repeating) == text.NUM_DECOYS


def test_likeness_misleads(made):
    texts, questions, _ = made
    first_is_right = 0
    for question in questions:
        bm25 = Bm25.of_texts([texts[c] for c in question.candidate_ids], list(range(world.POOL_SIZE)))
        rows, _ = bm25.search([question.question], 1)
        first_is_right += question.candidate_ids[int(rows[0][0])] in question.positive_ids
    assert first_is_right == 0


def test_places_of_the_right_document_are_even(made):
    _, questions, _ = made
    places = [q.candidate_ids.index(q.positive_ids[0]) for q in questions]
    assert set(places) == set(range(world.POOL_SIZE))


@pytest.mark.parametrize("rivals", [0, 2])
def test_rivals_are_other_facts_about_the_same_name(rivals):
    documents, questions, _ = world.generate(3, World(train=60, held_out=60, pretrain=20, rivals=rivals))
    texts = {d["id"]: d["text"] for d in documents}
    for question in questions:
        (name,) = names_in([texts[question.positive_ids[0]]])
        stated = [c for c in question.candidate_ids if c.endswith("-fact") and c not in question.positive_ids]
        about = [c for c in stated if names_in([texts[c]]) == {name}]
        # A rival at the right place would answer too, and is left out.
        assert len(about) <= rivals
    if rivals:
        assert about


def names_in(texts):
    words = [t.split() for t in texts]
    return {(a, b) for line in words for a, b in pairwise(line) if a in text.FIRST_NAMES and b in text.LAST_NAMES}


def test_held_out_names_are_new_together_and_known_apart(made):
    texts, questions, examples = made
    train = names_in(
        [t for key, t in texts.items() if key.startswith("train-")]
        + [q.question for q in questions if q.split == "train"]
    )
    train |= names_in([e.text for e in examples] + [w for e in examples for w in (*e.questions, *e.answers)])
    unseen = names_in([q.question for q in questions if q.split != "train"])
    assert unseen
    assert not unseen & train
    assert {first for first, _ in unseen} <= {first for first, _ in train}
    assert {last for _, last in unseen} <= {last for _, last in train}


def test_new_wordings_use_words_that_training_shows(made):
    texts, questions, _ = made
    shown = {w for key, t in texts.items() if key.startswith("train-") for w in t.split()}
    new = [q for q in questions if q.split == "unseen_wording"]
    old = {q.question for q in questions if q.split != "unseen_wording"}
    assert len(new) == 40
    assert {w for q in new for w in q.question.split()} <= shown
    assert not {q.question for q in new} & old


def test_same_seed_same_world_other_seed_other(made):
    assert world.generate(3, SIZES) == world.generate(3, SIZES)
    assert world.generate(3, SIZES)[0] != world.generate(4, SIZES)[0]


def test_too_many_facts_are_refused():
    with pytest.raises(InputError, match=r"--held-out: 4000 facts.*ask for fewer"):
        world.generate(0, World(train=20, held_out=2000, pretrain=20))


def test_command(tmp_path, capsys):
    argv = ["--output", str(tmp_path), "--train", "20", "--held-out", "20", "--pretrain", "20"]
    assert world.main(argv) == 0
    assert world.main(argv) == 0
    assert "up to date" in capsys.readouterr().out.splitlines()[-1]
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 20 * 5
    assert {q.split for q in read_questions(tmp_path / "questions")} == set(world.SPLITS)
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (128, 2)
    with pytest.raises(InputError, match="--train is 3"):
        world.main([*argv, "--train", "3"])


def test_every_word_of_the_world_and_its_prompts_is_a_token(tmp_path, made):
    texts, questions, _ = made
    world.save_backbone(tmp_path, 0)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * 2_000_000  # float32: under two million parameters
    tokenizer = load_tokenizer(tmp_path)
    prompts = PromptBuilder(tokenizer, load("infra/configs/world.toml").prompts)
    unknown = tokenizer.unk_token_id
    for line in [*texts.values(), *(q.question for q in questions)]:
        assert unknown not in prompts.text_ids(line)
    for prompt in (
        prompts.question(questions[0].question, questions[0].answers[0]),
        prompts.pairs([questions[0].question], questions[0].answers, 0.2),
        prompts.paraphrase(questions[0].question, 0),
    ):
        assert unknown not in [*prompt.left, *prompt.right, *prompt.answer]
        assert prompt.answer[-1] == tokenizer.eos_token_id
