"""Prompts of the instruct stage, and the documents of a corpus."""

import json
from pathlib import Path

import pytest

from clara.config.model import Model
from clara.config.stages import Instruct, Pretrain
from clara.config.tree import Config
from clara.data.examples import Example
from clara.data.questions import Question
from clara.errors import InputError
from clara.model.model import ClaraModel
from tests.helpers.batches import DOCUMENTS as ROWS
from tests.helpers.batches import question
from training.stages.documents import read_documents
from training.stages.memory_stages import InstructStage, PretrainStage


def instruct_stage(
    model: ClaraModel, questions: list[Question], micro_batch: int = 4, **settings: object
) -> InstructStage:
    config = Config(
        instruct=Instruct(questions_per_step=4, num_documents=3, **settings), model=Model(num_memory_tokens=4)
    )
    return InstructStage(model, questions, {row["id"]: row["text"] for row in ROWS}, config, micro_batch)


def test_an_instruct_prompt_holds_the_right_document_among_others_in_random_order(tiny_model: ClaraModel):
    stage = instruct_stage(tiny_model, [question(n) for n in range(8)])
    places = set()
    for step in range(12):
        (batch,) = stage.micro_batches(step, 0, 1)
        for prompt, selected in zip(batch.prompts, batch.selected, strict=True):
            right = [
                n
                for n in range(8)
                if prompt == tiny_model.prompts.question(question(n).question, question(n).answers[0])
            ]
            (right_ids,) = [tiny_model.document_ids(ROWS[n]["text"])[:96] for n in right]
            assert len(set(selected)) == 3
            places.add([batch.documents[s] for s in selected].index(right_ids))
    assert places == {0, 1, 2}


def test_other_answers_and_excluded_documents_are_not_offered(tiny_model: ClaraModel):
    asked = [question(n) for n in range(4)]
    ids = [row["id"] for row in ROWS]
    asked[0] = Question("q0", "Who?", ("A",), (ids[0], ids[1]), exclude_ids=(ids[2],), split="train")
    stage = instruct_stage(tiny_model, asked)
    (batch,) = stage.micro_batches(0, 0, 1)
    first = batch.prompts.index(tiny_model.prompts.question("Who?", "A"))
    offered = [batch.documents[s] for s in batch.selected[first]]
    expected = [tiny_model.document_ids(ROWS[n]["text"])[:96] for n in (0, 3)]
    assert sorted(offered) == sorted(expected)


@pytest.mark.parametrize(("positives", "right"), [("first", (0,)), ("all", (0, 1))])
def test_a_prompt_of_a_multi_hop_question_holds_all_right_documents_where_asked(
    tiny_model: ClaraModel, positives: str, right: tuple[int, ...]
):
    asked = [question(n) for n in range(4, 7)]
    ids = [row["id"] for row in ROWS]
    asked.append(Question("q0", "Who?", ("A",), (ids[0], ids[1]), split="train"))
    stage = instruct_stage(tiny_model, asked, positives=positives)
    (batch,) = stage.micro_batches(0, 0, 1)
    chosen = batch.selected[batch.prompts.index(tiny_model.prompts.question("Who?", "A"))]
    offered = [batch.documents[s] for s in chosen]
    texts = [tiny_model.document_ids(row["text"])[:96] for row in ROWS]
    assert len(set(chosen)) == 3
    assert [n for n in range(4) if texts[n] in offered] == list(right)


def test_a_micro_batch_that_cannot_fill_the_prompts_is_an_error(tiny_model: ClaraModel):
    with pytest.raises(InputError, match=r"instruct.num_documents is 3, a micro-batch holds 2 questions"):
        instruct_stage(tiny_model, [question(n) for n in range(4)], micro_batch=2)
    with pytest.raises(InputError, match="none of split 'train' names a positive document"):
        instruct_stage(tiny_model, [])


def test_ranks_share_a_step_without_overlap(tiny_model: ClaraModel):
    examples = [Example(str(n), r["id"], r["title"], r["text"], "autoencode") for n, r in enumerate(ROWS)]
    stage = PretrainStage(tiny_model, examples, Config(pretrain=Pretrain(documents_per_step=8)), 2)
    whole = [d for b in stage.micro_batches(3, 0, 1) for d in b.documents]
    shared = [d for rank in range(2) for b in stage.micro_batches(3, rank, 2) for d in b.documents]
    assert len(whole) == 8
    assert sorted(whole) == sorted(shared)


def test_a_document_whose_id_is_zero_keeps_it(tmp_path: Path):
    (tmp_path / "corpus.jsonl").write_text('{"id": 0, "text": "Nought."}\n')
    assert read_documents(str(tmp_path / "corpus.jsonl"), {"0"}) == {"0": "Nought."}


def test_documents_are_read_from_all_files_of_a_glob(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "text": f"About {name}."}) + "\n")
    assert read_documents(str(tmp_path / "*.jsonl"), {"a", "b"}) == {"a": "About a.", "b": "About b."}
    with pytest.raises(InputError, match=r"corpus .*none\*.*no such file"):
        read_documents(str(tmp_path / "none*"), {"a"})


def test_documents_are_read_by_id(corpus_file: Path):
    found = read_documents(str(corpus_file), {"doc-03", "doc-07"})
    assert found == {name: f"{ROWS[n]['title']}\n{ROWS[n]['text']}" for name, n in (("doc-03", 3), ("doc-07", 7))}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"id": "a", "text": "x"}\nnot json\n', r"corpus.jsonl:2: 'not json"),
        (b'{"id": "a"}\n', r"corpus.jsonl:1: no `text` \(fields: id\)"),
        (b'{"id": "a", "text": 5}\n', r"corpus.jsonl:1: text is 5; expected a string"),
        (b"[1]\n", r"corpus.jsonl:1: "),
        (b'{"id": "a", "text": "\xff"}\n', r"corpus.jsonl:1: .*UTF-8"),
        (b'{"id": "b", "text": "x"}\n', r"1 documents that questions name are not there \(first: a\)"),
    ],
)
def test_a_corpus_that_is_not_one_is_an_error_that_names_the_line(tmp_path: Path, content: bytes, wanted: str):
    (tmp_path / "corpus.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=wanted):
        read_documents(str(tmp_path / "corpus.jsonl"), {"a"})


def test_other_documents_come_from_the_questions_pool_where_asked(tiny_model: ClaraModel):
    ids, texts = [row["id"] for row in ROWS], [tiny_model.document_ids(row["text"])[:96] for row in ROWS]
    asked = [
        Question(f"q{n}", f"Who is {n}?", ("A",), (ids[n],), (ids[n], ids[9], ids[10], ids[11]), (ids[11],), "train")
        for n in range(4)
    ]
    (batch,) = instruct_stage(tiny_model, asked, negatives="pool").micro_batches(0, 0, 1)
    for prompt, selected in zip(batch.prompts, batch.selected, strict=True):
        (number,) = [n for n in range(4) if prompt == tiny_model.prompts.question(f"Who is {n}?", "A")]
        assert sorted(texts.index(batch.documents[s]) for s in selected) == [number, 9, 10]
    with pytest.raises(
        InputError, match=r"instruct.negatives is 'pool', and 1 of 5 questions have no candidate_ids \('q5' first\)"
    ):
        instruct_stage(tiny_model, [*asked, question(5)], negatives="pool")


def test_a_share_of_the_prompts_is_without_the_right_document(tiny_model: ClaraModel):
    asked = [question(n) for n in range(8)]
    stage = instruct_stage(tiny_model, asked, without_right=0.25)
    texts = [tiny_model.document_ids(row["text"])[:96] for row in ROWS]
    without = 0
    for step in range(100):
        (batch,) = stage.micro_batches(step, 0, 1)
        for prompt, selected in zip(batch.prompts, batch.selected, strict=True):
            (number,) = [
                n for n in range(8) if prompt == tiny_model.prompts.question(asked[n].question, asked[n].answers[0])
            ]
            offered = [texts.index(batch.documents[s]) for s in selected]
            assert len(set(offered)) == 3
            without += number not in offered
    assert 70 < without < 130  # of 400; three deviations of the binomial are 26


def test_a_prompt_is_never_left_without_documents(tiny_model: ClaraModel):
    """Where nothing else can be offered, the right document stays."""
    same = [Question(f"q{n}", "Who?", ("A",), (ROWS[0]["id"],), split="train") for n in range(4)]
    stage = instruct_stage(tiny_model, same, without_right=0.9)
    for step in range(5):
        (batch,) = stage.micro_batches(step, 0, 1)
        assert batch.selected == [[0]] * 4


@pytest.mark.parametrize("negatives", ["batch", "pool"])
def test_a_copy_of_the_right_document_under_another_id_is_not_a_wrong_one(tiny_model: ClaraModel, negatives: str):
    ids = [row["id"] for row in ROWS]
    documents = {row["id"]: row["text"] for row in ROWS} | {"copy": ROWS[0]["text"]}
    pool = ("copy", *ids[:4]) if negatives == "pool" else ()
    asked = [Question(f"q{n}", "Who?", (str(n),), (name,), pool) for n, name in enumerate([*ids[:3], "copy"])]
    settings = Instruct(questions_per_step=4, num_documents=3, negatives=negatives)
    stage = InstructStage(tiny_model, asked, documents, Config(instruct=settings), 4)
    for step in range(8):
        (batch,) = stage.micro_batches(step, 0, 1)
        for answer in ("0", "3"):
            chosen = batch.selected[batch.prompts.index(tiny_model.prompts.question("Who?", answer))]
            right = tiny_model.document_ids(ROWS[0]["text"])[: tiny_model.settings.max_document_tokens]
            assert [batch.documents[place] for place in chosen].count(right) == 1
