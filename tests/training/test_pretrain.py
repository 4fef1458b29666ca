"""The command of stages pretrain and instruct, from artefacts to a CHECKPOINT, and the batches that they train on."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone
from clara.data.examples import Example, write_examples
from clara.data.questions import Question, write_questions
from clara.errors import InputError
from clara.model import lora
from clara.model.checkpoint import load_checkpoint
from clara.storage.manifest import read_manifest
from tests.helpers import tiny, warm
from tests.helpers.artefacts import verify
from tests.helpers.batches import question
from training.pretrain import build, main

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
    """The command with those of the settings that its stage reads."""
    other = "pretrain." if "stage=instruct" in more else "instruct."
    read = [item for item in (*sets, *more) if not item.startswith(other)]
    return [part for item in read for part in ("--set", item)] + list(flags)


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


# --- a real kill -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_weights(inputs: list[str], tmp_path: Path):
    """SIGKILL in the middle of the command, then the command again: bit for bit what an undisturbed one makes."""
    sets = [*inputs, "stage=pretrain", "pretrain.steps=40"]

    def arguments(output: Path) -> list[str]:
        return command(sets, f"output={output}", "launch.threads=1")

    assert main(arguments(tmp_path / "whole")) == 0
    process = warm.start(main, arguments(tmp_path / "killed"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("run-*/run_state/step-*/state.json")):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    warm.kill(process)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint" / "manifest.json").exists()
    assert main(arguments(tmp_path / "killed")) == 0
    whole, killed = state(tmp_path / "whole" / "checkpoint"), state(tmp_path / "killed" / "checkpoint")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
