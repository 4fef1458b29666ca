"""The command of stages pretrain and instruct, from artefacts to a CHECKPOINT, and the batches that they train on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone, Model
from clara.config.stages import Instruct, Pretrain
from clara.config.tree import Config
from clara.data.examples import Example, write_examples
from clara.data.questions import Question, write_questions
from clara.errors import InputError
from clara.model import lora
from clara.model.checkpoint import load_checkpoint
from clara.model.model import ClaraModel
from clara.storage.manifest import read_manifest
from tests.helpers import tiny
from tests.helpers.artefacts import verify
from training.pretrain import build, main
from training.stages.documents import read_documents
from training.stages.memory_stages import InstructStage, PretrainStage

ROWS = tiny.documents()
FLOAT32 = Backbone(dtype="float32")
SETTINGS = [
    "backbone.dtype=float32",
    "model.num_memory_tokens=4",
    "model.max_document_tokens=43",
    "model.lora.rank=4",
    "model.lora.dropout=0.1",
    "pretrain.steps=6",
    "pretrain.documents_per_step=4",
    "instruct.steps=4",
    "instruct.questions_per_step=4",
    "instruct.num_documents=2",
    "joint.checkpoint_every=2",
    "pretrain.optimiser.learning_rate=0.02",
    "instruct.optimiser.learning_rate=0.02",
]


def question(number: int) -> Question:
    row = ROWS[number]
    return Question(
        f"q{number}", f"Who is the mayor of {row['title']}?", (row["title"][:3],), (row["id"],), split="train"
    )


@pytest.fixture(scope="module")
def inputs(tiny_backbone: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that name a tiny run's inputs."""
    directory = tmp_path_factory.mktemp("inputs")
    qa = [
        Example(
            f"e{n}",
            r["id"],
            r["title"],
            r["text"],
            "qa",
            ("Which town?", "Which river?"),
            tuple(r["title"].split(" on the ")),
        )
        for n, r in enumerate(ROWS[:8])
    ]
    autoencoded = [Example(f"a{n}", r["id"], r["title"], r["text"], "autoencode") for n, r in enumerate(ROWS[8:12])]
    write_examples(directory / "examples", qa + autoencoded, recipe={})
    write_questions(
        directory / "questions",
        [*map(question, range(8)), Question("q-none", "Why?", ("so",), split="train")],
        recipe={},
    )
    return [
        *SETTINGS,
        f"backbone.path={tiny_backbone}",
        f"examples={directory}/examples",
        f"questions={directory}/questions",
        f"corpus={corpus_file}",
    ]


def command(sets: list[str], *more: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [part for item in (*sets, *more) for part in ("--set", item)] + list(flags)


@pytest.fixture(scope="module")
def pretrained(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pretrained")
    assert main(command(inputs, "stage=pretrain", f"output={output}")) == 0
    return output


def figures(output: Path) -> list[dict[str, float]]:
    (path,) = output.glob("run-*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def state(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint, FLOAT32).state_dict()


def test_pretrain_makes_a_checkpoint_whose_query_reasoner_is_the_compressor(pretrained: Path):
    manifest = verify(pretrained / "checkpoint", "CHECKPOINT")
    assert (manifest["stage"], manifest["roles"]["query_reasoner"]) == ("pretrain", "compressor")
    values = figures(pretrained)
    assert [v["step"] for v in values] == [1, 2, 3, 4, 5, 6]
    assert values[-1]["answer_nats"] < values[0]["answer_nats"]
    assert all(0 <= v["texts_cut"] <= 4 for v in values)
    assert any(v["texts_cut"] for v in values), "some documents here are longer than 43 tokens"


def test_the_same_command_finds_it_up_to_date(pretrained: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]):
    before = (pretrained / "checkpoint" / "manifest.json").stat().st_mtime_ns
    assert main(command(inputs, "stage=pretrain", f"output={pretrained}")) == 0
    assert "up to date" in capsys.readouterr().out
    assert (pretrained / "checkpoint" / "manifest.json").stat().st_mtime_ns == before


def test_another_backbone_is_not_up_to_date(pretrained: Path, inputs: list[str], tmp_path: Path):
    other = tiny.write_backbone(tmp_path / "other", seed=3)
    output = tmp_path / "output"
    main(command(inputs, "stage=pretrain", f"output={output}", "pretrain.steps=1"))
    main(command(inputs, "stage=pretrain", f"output={output}", "pretrain.steps=1", f"backbone.path={other}"))
    assert read_manifest(output / "checkpoint")["backbone"]["path"] == str(other)


def test_a_run_of_another_backbone_is_not_resumed(inputs: list[str], tmp_path: Path):
    other = tiny.write_backbone(tmp_path / "other", seed=3)
    main(command(inputs, "stage=pretrain", f"output={tmp_path}/output"))
    (tmp_path / "output" / "checkpoint" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"run state to resume is for a backbone with sha256 .*other has"):
        main(command(inputs, "stage=pretrain", f"output={tmp_path}/output", f"backbone.path={other}"))


@pytest.mark.parametrize("restart", [False, True])
def test_V9_instruct_starts_from_the_pretrained_parts(pretrained: Path, inputs: list[str], restart: bool):
    """The compressor is pretrain's; the generator is carried over, or restarts with B = 0 as in the reference."""
    sets = [
        *inputs,
        "stage=instruct",
        f"checkpoint={pretrained}/checkpoint",
        "output=x",
        f"instruct.generator={'restart' if restart else 'carry_over'}",
    ]
    model, _ = build(load(None, sets), 4)
    before = state(pretrained / "checkpoint")
    generator = lora.adapter_tensors(model.backbone.layers, "generator", "")
    assert all(bool(t.any()) != (restart and "lora_B" in name) for name, t in generator.items())
    for name, tensor in model.state_dict().items():
        if ".adapters.generator." not in name:
            assert torch.equal(tensor, before[name]), name


def test_instruct_changes_compressor_and_generator_only(pretrained: Path, inputs: list[str], tmp_path: Path):
    assert main(command(inputs, "stage=instruct", f"checkpoint={pretrained}/checkpoint", f"output={tmp_path}")) == 0
    before, after = state(pretrained / "checkpoint"), state(tmp_path / "checkpoint")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before if ".adapters." in name
    }  # the query reasoner is the compressor's copy again
    assert all(
        torch.equal(after[n.replace("query_reasoner", "compressor")], t)
        for n, t in after.items()
        if "query_reasoner" in n
    )


def test_a_trained_backbone_is_stored(inputs: list[str], tmp_path: Path, tiny_backbone: Path):
    assert (
        main(
            command(inputs, "stage=pretrain", f"output={tmp_path}", "pretrain.train_backbone=true", "pretrain.steps=2")
        )
        == 0
    )
    manifest = read_manifest(tmp_path / "checkpoint")
    assert manifest["backbone"]["own"] is True
    trained = load_checkpoint(tmp_path / "checkpoint", FLOAT32).backbone.embedding.weight
    fresh = tiny.build_model(tiny_backbone).backbone.embedding.weight
    assert not torch.equal(trained, fresh)


def test_dry_run_writes_nothing(inputs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(command(inputs, "stage=pretrain", f"output={tmp_path}/output", flags=("--dry-run",))) == 0
    assert json.loads(capsys.readouterr().out)["pretrain"]["steps"] == 6
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("sets", "flags", "wanted"),
    [
        (["stage=joint"], (), "training/joint.py the other"),
        (["stage=pretrain", "examples="], (), "examples: empty"),
        (["stage=pretrain", "output="], (), "output: empty"),
        (["stage=instruct"], (), "checkpoint: empty"),
        (["stage=pretrain", "examples=/nowhere"], (), "/nowhere: no manifest.json"),
        (["stage=pretrain", "backbone.path=/nowhere"], (), "/nowhere"),
        (
            ["stage=pretrain", "pretrain.train_backbone=true", "backbone.dtype=bfloat16"],
            (),
            "train_backbone.*set backbone.dtype=float32",
        ),
        (["stage=pretrain"], ("--micro-batch", "3"), "4 rows a step are not a multiple"),
        (["stage=pretrain"], ("--micro-batch", "-1"), "--micro-batch is -1"),
    ],
)
def test_what_is_missing_or_wrong_is_reported(
    inputs: list[str], tmp_path: Path, sets: list[str], flags: tuple[str, ...], wanted: str
):
    with pytest.raises(InputError, match=wanted):
        main(command(inputs, f"output={tmp_path}", *sets, flags=flags))


def test_an_output_that_cannot_be_written_is_reported_before_the_model_is_read(inputs: list[str], tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/output/run-.*: cannot be written"):
        main(command(inputs, f"output={tmp_path}/file/output", "stage=pretrain", "backbone.path=/nowhere"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(inputs: list[str], tmp_path: Path):
    with pytest.raises(InputError, match="no CUDA device here"):
        main(command(inputs, f"output={tmp_path}", "stage=pretrain", "launch.gpu=true"))


# --- batches ---------------------------------------------------------------------------------------------------------


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


# --- corpus ----------------------------------------------------------------------------------------------------------


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


# --- a real kill -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(inputs: list[str], tmp_path: Path):
    """SIGKILL in the middle of the command, then the command again: bit for bit what an undisturbed one makes."""
    root = Path(__file__).parents[2]
    sets = [*inputs, "stage=pretrain", "pretrain.steps=40"]
    program = [sys.executable, "training/pretrain.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def arguments(output: Path) -> list[str]:
        return [*program, *command(sets, f"output={output}", "launch.threads=1")]

    subprocess.run(arguments(tmp_path / "whole"), cwd=root, env=environment, check=True, capture_output=True)
    process = subprocess.Popen(
        arguments(tmp_path / "killed"), cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("run-*/run_state/step-*/state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "checkpoint" / "manifest.json").exists()
    subprocess.run(arguments(tmp_path / "killed"), cwd=root, env=environment, check=True, capture_output=True)
    whole, killed = state(tmp_path / "whole" / "checkpoint"), state(tmp_path / "killed" / "checkpoint")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


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
