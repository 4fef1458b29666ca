"""Settings of experiments and submit commands: keys of the tree, passed on to the steps that use them."""

import itertools
import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from clara.config.load import load
from clara.errors import InputError
from infra import world
from infra.dataflow import submit as dataflow
from infra.demo import command as demo
from infra.evidence import command as evidence
from infra.phases import command as phases
from infra.refresh_policies import command as refresh_policies
from infra.spark import submit as spark
from infra.steps import ROOT
from pipelines.world import command as world_command


def dry_run(capsys: pytest.CaptureFixture[str], main: object, *arguments: str) -> list[list[str]]:
    """The commands that an experiment prints, as words."""
    assert main([*arguments, "--dry-run"]) == 0  # type: ignore[operator]
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def of_program(commands: list[list[str]], program: str) -> list[list[str]]:
    return [words for words in commands if any(program in word for word in words[:4])]


def sets(words: list[str]) -> list[str]:
    return [value for flag, value in itertools.pairwise(words) if flag == "--set"]


def test_the_demo_passes_settings_on_to_the_stages_that_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--output", str(tmp_path), "--dtype=float32", "--pretrain", "--documents=30"]
    own = ["--set", "joint.steps=3", "--set", "pretrain.steps=4", "--set", "model.lora.dropout=0.5"]
    commands = dry_run(capsys, demo.main, *given, *own)
    (joint,) = of_program(commands, "training/joint.py")
    pretrain, instruct = of_program(commands, "training/pretrain.py")
    config = load("infra/configs/demo.toml", sets(joint))
    assert (config.joint.steps, config.model.lora.dropout, config.backbone.dtype) == (3, 0.5, "float32")
    assert "pretrain.steps=4" in sets(pretrain)
    assert "model.lora.dropout=0.5" in sets(instruct)
    assert not {"pretrain.steps=4", "joint.steps=3"} & set(sets(instruct))
    (select,) = of_program(commands, "pipelines.select_corpus")
    assert select[-2:] == ["--documents", "30"]
    file = tmp_path / "own.toml"
    file.write_text("[selection]\ndocuments = 40\n[backbone]\npath = 'lm'\ndtype = 'float32'\n", encoding="utf-8")
    commands = dry_run(capsys, demo.main, "--config", str(file))
    assert of_program(commands, "pipelines.select_corpus")[0][-2:] == ["--documents", "40"]
    assert "backbone.path=lm" in sets(of_program(commands, "training/joint.py")[0])
    assert not of_program(commands, "infra.demo.base_model")


def test_each_phase_begins_with_the_checkpoint_of_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--output", str(tmp_path), "--dtype=float32", "--input=c.jsonl", "--backbone=lm", "--dense-model=minilm"]
    commands = dry_run(capsys, phases.main, *given, "--control", "--set", "joint.steps=3")
    reasoner, generator, joint, control = (
        dict(value.split("=", 1) for value in sets(words)) for words in of_program(commands, "training/joint.py")
    )
    assert reasoner["checkpoint"] == str(tmp_path / "start")
    fit = of_program(commands, "training.fit_score")[-1]
    assert fit[fit.index("--checkpoint") + 1] == reasoner["output"] + "/checkpoint"
    assert generator["checkpoint"] == fit[fit.index("--output") + 1]
    assert joint["checkpoint"] == control["checkpoint"] == generator["output"] + "/checkpoint"
    assert (reasoner["joint.steps"], control["joint.cut_gradient"]) == ("3", "true")
    # The reasoner reads UTILITIES of the start; the score is fitted to those of the trained reasoner, of the fold.
    train, fold = of_program(commands, "pipelines.score_utilities")
    assert reasoner["utilities"] == train[train.index("--output") + 1]
    assert "--fold" in fold
    assert fold[fold.index("--checkpoint") + 1] == reasoner["output"] + "/checkpoint"
    for name, values in (("reasoner", reasoner), ("generator", generator), ("joint", joint)):
        config = load(f"infra/configs/{name}.toml", [f"{key}={value}" for key, value in values.items()])
        assert config.joint.fit_share == 0.1
    with pytest.raises(InputError, match="expected the first of reasoner,score,generator,joint"):
        phases.main([*given, "--phases", "reasoner,joint", "--dry-run"])


def test_standard_rag_searches_without_memory_and_is_answered_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--output", str(tmp_path), "--dtype=float32", "--input=c.jsonl", "--backbone=lm", "--dense-model=minilm"]
    commands = dry_run(capsys, phases.main, *given, "--standard-rag", "--answered=8")
    rag = dict(value.split("=", 1) for value in sets(of_program(commands, "training/joint.py")[1]))
    fit = next(c for c in of_program(commands, "training.fit_score") if "bm25,dense" in c)
    assert rag["checkpoint"] == fit[fit.index("--output") + 1]
    assert fit[fit.index("--utilities") + 1] == str(tmp_path / "fold-utilities")
    baseline = load("infra/configs/standard_rag.toml", [f"{key}={value}" for key, value in rag.items()]).joint
    assert (baseline.reads, baseline.from_index, baseline.from_dense) == ("text", 0, 3)
    staged = [load(f"infra/configs/{name}.toml", []).joint for name in ("generator", "joint")]
    questions = sum(stage.steps * stage.questions_per_step for stage in staged)
    assert baseline.steps * baseline.questions_per_step == questions
    assert {stage.num_selected for stage in staged} == {baseline.num_selected}
    _, answers = of_program(commands, "training.evaluate")
    systems = [value.partition("=")[0] for option, value in pairwise(answers) if option == "--system"]
    assert systems == ["generator", "joint", "standard_rag"]
    assert answers[answers.index("--limit") + 1] == "8"


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (demo.main, ["--set", "retrieval.first_level=5"]),
        (demo.main, ["--set", "checkpoint=c", "--set", "memory=m"]),
        (evidence.main, ["--data=d", "--output=o", "--set", "index_job.words=false"]),
        (world.main, ["--output=o", "--set", "evaluation.limit=3"]),
        (world.main, ["--output=o", "--set", "seed=3"]),
        (refresh_policies.main, ["--output=o", "--set", "corpus_job.codec=int8"]),
        (phases.main, ["--output=o", "--set", "corpus_job.codec=int8"]),
        (world_command.main, ["--output=o", "--set", "joint.steps=3"]),
    ],
)
def test_what_no_step_gets_is_refused(main: object, arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"--set \S+: .* does not use this key"):
        main([*arguments, "--dry-run"])  # type: ignore[operator]


def test_default_files_are_found_from_every_folder(tmp_path: Path) -> None:
    program = (
        "from clara.config.load import read_file; from infra import world; from infra.demo import given as demo; "
        "from infra.evidence import steps as evidence; print(all(read_file(m.CONFIG) for m in (world, demo, evidence)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_the_evidence_takes_its_settings_from_flags_and_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--dtype=float32"]
    commands = dry_run(capsys, evidence.main, *given)
    (memory,) = [words for words in of_program(commands, "pipelines.build_memory") if "memory:" in words]
    assert memory[memory.index("--num-workers") + 1] == "1"
    more = ["--workers=3", "--generate=7", "--dense-model=dense", "--set", "joint.micro_batch=1", "--systems", "joint"]
    commands = dry_run(capsys, evidence.main, *given, *more)
    (memory,) = [words for words in of_program(commands, "pipelines.build_memory") if "memory:" in words]
    assert memory[memory.index("--num-workers") + 1] == "3"
    (joint,) = of_program(commands, "training/joint.py")
    assert "joint.micro_batch=1" in sets(joint)
    (evaluation,) = [words for words in of_program(commands, "training.evaluate") if "evaluate:" in words]
    assert evaluation[evaluation.index("--generate") + 1] == "7"
    assert evaluation[evaluation.index("--dense-model") + 1] == "dense"


def test_a_world_gets_its_own_settings_and_each_stage_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output=o", "--without-paraphrase", "--set", "world.train=40", "--set", "joint.steps=3"]
    commands = dry_run(capsys, world.main, *arguments)
    (made,) = of_program(commands, "pipelines.world")
    assert sets(made) == ["world.paraphrase=false", "world.train=40"]
    options = world_command.parser().parse_args(made[3:])
    assert (options.config.world.train, options.config.world.paraphrase, options.held_out) == (40, False, 200)
    (joint,) = of_program(commands, "training/joint.py")
    assert load(world.CONFIG, sets(joint)).joint.steps == 3
    assert not any(value.startswith("world.") for value in sets(joint))


def test_policies_are_compared_in_a_smaller_world(capsys: pytest.CaptureFixture[str]) -> None:
    commands = dry_run(capsys, refresh_policies.main, "--output=o", "--policies=none,incremental", "--every=4")
    (made,) = of_program(commands, "pipelines.world")
    assert sets(made) == ["world.train=200", "world.held_out=60"]
    none, incremental = (load(world.CONFIG, sets(words)).joint for words in of_program(commands, "training/joint.py"))
    assert (none.steps, none.refresh.every_steps) == (60, 0)  # what a policy does not read is not set
    refresh = incremental.refresh
    assert (refresh.every_steps, refresh.start_step, refresh.share, refresh.canary_rows) == (4, 4, 0.25, 32)


def test_worlds_have_the_recipe_that_they_had_before_their_settings_were_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(world_command, "up_to_date", lambda folder, kind, recipe: bool(seen.append(recipe)) or True)
    for name in ("backbone/config.json", "corpus.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    arguments = ["--output", str(tmp_path), "--train=20", "--held-out=20", "--pretrain=20", "--without-paraphrase"]
    assert world_command.main(arguments) == 0
    assert {name: value for name, value in seen[0].items() if name != "corpus"} == {
        **{"program": "pipelines.world", "seed": 0, "train": 20, "held_out": 20, "pretrain": 20, "rivals": 0},
        "paraphrase": False,
    }


def test_a_cluster_is_described_in_a_file_and_the_jobs_settings_are_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        "[engine.spark]\nmaster = 'spark://head:7077'\nprocesses = 8\nfiles_to_stage = ['a.jar', 'b.jar']\n"
        "[engine.dataflow]\nproject = 'p'\nregion = 'r'\nbucket = 'gs://b'\nimage = 'i'\nmax_machines = 3\n",
        encoding="utf-8",
    )
    job = ["build_memory", "--config", "corpus.toml", "--set", "corpus_job.codec=int8"]
    assert spark.main(["--config", str(file), "--set", "engine.spark.processes=2", "--dry-run", *job]) == 0
    said = capsys.readouterr().out
    assert "pipelines.build_memory --config corpus.toml --set corpus_job.codec=int8 --runner=SparkRunner" in said
    assert "--spark_master_url=spark://head:7077 --sdk_worker_parallelism=2" in said
    assert "--files_to_stage=a.jar --files_to_stage=b.jar" in said
    assert dataflow.main(["--config", str(file), "--dry-run", *job]) == 0
    assert "--project=p --region=r --temp_location=gs://b/temp" in (said := capsys.readouterr().out)
    assert "--max_num_workers=3" in said
    with pytest.raises(InputError, match="--processes is 0; expected 1 or more"):
        spark.main(["--master=local", "--processes=0", *job])
    with pytest.raises(SystemExit, match="2"):
        spark.main(["--dry-run", *job])
    assert "the following arguments are required: --master" in capsys.readouterr().err
