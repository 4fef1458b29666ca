"""Registry and promotion: a version that answers, pointers instead of bytes, and an alias that moves for a reason."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException

from clara.errors import InputError, command_line
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import manifest_hash, read_manifest
from clara.tracking.run_log import TrackingError
from tests.helpers.evaluation_world import World
from tests.helpers.registry import MODEL, QUESTIONS, evaluation, promotion, registration, store, world
from training import promote, register
from training.promote import Held, decide
from training.refresh.retention import pinned_by
from training.registry.evaluation_log import track
from training.registry.served_model import local_path

__all__ = ["evaluation", "store", "world"]  # fixtures


# --- the decision ----------------------------------------------------------------------------------------------------


def held(values: list[float], *, wording: str = "Who?") -> Held:
    names = [f"q{i}" for i in range(len(values))]
    return Held({n: (wording, ("Bob",), (f"d{n}",)) for n in names}, dict(zip(names, values, strict=True)))


def decision(challenger: Held, champion: Held) -> promote.Decision:
    return decide(challenger, champion, measure="index.log_likelihood", level=0.05)


def test_a_small_but_certain_gain_is_promoted() -> None:
    base = np.linspace(-9, -1, 20)
    result = decision(held((base + 0.01).tolist()), held(base.tolist()))
    assert result.promoted
    assert result.test is not None
    assert result.test.difference == pytest.approx(0.01)
    assert "+0.0100" in result.reason


def test_a_large_gain_on_few_questions_may_be_chance() -> None:
    # Four questions, all of them better: a two-sided paired permutation test cannot give less than 2 / 2^4.
    result = decision(held([-1.0, -1.0, -1.0, -1.0]), held([-9.0, -9.0, -9.0, -9.0]))
    assert not result.promoted
    assert result.test is not None
    assert result.test.p_value == pytest.approx(2 / 2**4)
    assert "may be chance" in result.reason


@pytest.mark.parametrize("gain", [0.0, -0.5])
def test_no_gain_is_not_promoted(gain: float) -> None:
    base = np.linspace(-9, -1, 20)
    result = decision(held((base + gain).tolist()), held(base.tolist()))
    assert not result.promoted
    assert result.reason.startswith("not better than the champion")


def test_other_questions_are_not_compared() -> None:
    more = decision(held([-1.0] * 8), held([-9.0] * 7))
    assert (more.promoted, more.test) == (False, None)
    assert "1 only for the challenger, 0 only for the champion" in more.reason
    reworded = decision(held([-1.0] * 8), held([-9.0] * 8, wording="Whom?"))
    assert "8 with another wording" in reworded.reason
    incomplete = Held(held([-1.0] * 8).asked, {"q0": -1.0, "q1": -1.0})
    assert "known for 2 of 8 questions" in decision(incomplete, held([-9.0] * 8)).reason


@pytest.mark.parametrize(
    "error", [MlflowException("500:\n down"), TrackingError("no\nroute"), requests.ConnectionError("refused")]
)
def test_a_store_that_goes_away_is_bad_input(
    error: Exception,
    empty_store: Callable[[Path], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", fail)
    given = ["--name", MODEL, "--version", "1", "--tracking-uri", empty_store(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["promote", *given])
    with pytest.raises(SystemExit, match="2"):
        command_line(promote.main)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not answer, or refuses" in line
    assert " ".join(str(error).split()) in line


# --- registry and alias ----------------------------------------------------------------------------------------------


def test_register_promote_and_answer(
    world: World, evaluation: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 2, "lo')
    before = [*registration(world, evaluation, store, "before"), "--metrics", str(metrics)]
    assert register.main([*before, "--dry-run"]) == 0
    assert world.memory.as_uri() in capsys.readouterr().out
    assert register.main(before) == 0
    assert f"models:/{MODEL}/1" in capsys.readouterr().out

    # No run deletes or replaces what the model points to.
    assert pinned_by(world.memory) == pinned_by(world.index) == f"model {MODEL} in {store}"

    client = mlflow.MlflowClient()
    version = client.get_model_version(MODEL, "1")
    run = client.get_run(version.run_id)
    assert version.tags["clara.memory_hash"] == run.data.tags["clara.memory_hash"] == manifest_hash(world.memory)
    assert run.data.params["made_by"] == "tests"  # of the checkpoint's recipe
    assert [(m.step, m.value) for m in client.get_metric_history(version.run_id, "loss")] == [(1, 3.0), (2, 2.5)]
    report = json.loads((evaluation / "report.json").read_text())
    expected = report["systems"]["before"]["unseen"]["index.recall@5"]["value"]
    assert run.data.metrics["unseen/before/index.recall_at_5"] == pytest.approx(expected)
    logged = {entry.path for entry in client.list_artifacts(version.run_id, "evaluation")}
    assert {"evaluation/per_question.parquet", "evaluation/recall-unseen.png", "evaluation/report.html"} <= logged
    assert [entry.path for entry in client.list_artifacts(version.run_id, "curves")] == ["curves/loss.png"]

    # The same again is the same version; an interrupted try leaves no second run behind.
    assert register.main(before) == 0
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1

    # The version holds the checkpoint and pointers, never MEMORY's or INDEX's bytes.
    held = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}/1"))
    files = {p.name for p in held.rglob("*") if p.is_file()}
    assert {"adapter_model.safetensors", "memory_tokens.safetensors", "served_model.py"} <= files
    assert not files & {"records.parquet", "memory.safetensors", "index.faiss", "model.safetensors", "python_model.pkl"}

    assert promote.main(promotion(store, "latest", "--dry-run")) == 0
    assert client.get_registered_model(MODEL).aliases == {}
    assert promote.main(promotion(store, "latest")) == 0
    assert "nobody holds champion" in client.get_model_version(MODEL, "1").tags["clara.promotion.champion"]
    assert promote.main(promotion(store, "1")) == 0
    assert "holds champion already" in capsys.readouterr().out

    # The loaded model answers as the open system does, from a list and from a table.
    answered = Retriever.open(world.checkpoint, world.memory, world.index).ask(
        QUESTIONS, num_selected=2, max_new_tokens=4
    )
    served = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    for given in (QUESTIONS, pd.DataFrame({"question": QUESTIONS})):
        for record, expected_answer in zip(served.predict(given), answered, strict=True):
            assert record["answer"] == expected_answer.answer
            assert [d["text"] for d in record["documents"]] == [p.text for p in expected_answer.passages]
            assert record["scores"] == pytest.approx([p.score for p in expected_answer.passages])

    # What `mlflow models serve` would send is JSON, and the signature says what is in it.
    assert json.loads(json.dumps(served.predict(QUESTIONS))) == served.predict(QUESTIONS)
    assert "documents" in str(served.metadata.signature.outputs)

    # The generator that learned the answers takes the alias, and does not lose it to the one that did not.
    assert register.main(registration(world, evaluation, store, "after")) == 0
    assert promote.main(promotion(store, "2", "--split", "unseen")) == 0
    assert client.get_model_version_by_alias(MODEL, "champion").version in (2, "2")
    assert (
        "beats the champion: index.log_likelihood +"
        in client.get_model_version(MODEL, "2").tags["clara.promotion.champion"]
    )
    assert promote.main(promotion(store, "1")) == promote.NOT_PROMOTED
    assert "not better than the champion" in client.get_model_version(MODEL, "1").tags["clara.promotion.champion"]
    assert client.get_model_version_by_alias(MODEL, "champion").version in (2, "2")

    with pytest.raises(InputError, match=r"--version '7': towns has 1, 2"):
        promote.main(promotion(store, "7"))
    with pytest.raises(InputError, match=r"no question with split 'train'; there are \['seen', 'unseen'\]"):
        promote.main(promotion(store, "1", "--split", "train"))
    with pytest.raises(InputError, match=r"--measure 'accuracy': the evaluation has index\.recall@1"):
        promote.main(promotion(store, "1", "--measure", "accuracy"))


def test_a_changed_memory_is_refused_on_loading(world: World, evaluation: Path, store: str, tmp_path: Path) -> None:
    copied = World(world.checkpoint, world.trained, tmp_path / "memory", world.index, world.questions)
    shutil.copytree(world.memory, copied.memory)
    arguments = registration(copied, evaluation, store, "before")
    arguments[1] = "moved"
    assert register.main(arguments) == 0
    assert len(mlflow.pyfunc.load_model("models:/moved/1").predict(QUESTIONS)) == 2
    manifest = json.loads((copied.memory / "manifest.json").read_text())
    manifest["tombstones"] = [int(Retriever.open(world.checkpoint, world.memory).store.row_ids[0])]
    (copied.memory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"this MEMORY has manifest hash [0-9a-f]{16}…, the model was registered with [0-9a-f]{16}…"
    ):
        mlflow.pyfunc.load_model("models:/moved/1")
    elsewhere = mlflow.pyfunc.load_model("models:/moved/1", model_config={"memory_uri": world.memory.as_uri()})
    assert len(elsewhere.predict(QUESTIONS)) == 2


@pytest.mark.parametrize("name", ["", "it's", "a/b", "a:b", "x" * 300])
def test_names_that_mlflow_refuses_are_refused_ahead_of_the_work(
    world: World, evaluation: Path, store: str, name: str
) -> None:
    arguments = [name if a == MODEL else a for a in registration(world, evaluation, store, "before")]
    with pytest.raises(InputError, match=r"--name .*none of them among"):
        register.main(arguments)
    with pytest.raises(InputError, match=r"--name .*none of them among"):
        promote.main(["--name", name, "--version", "1", "--tracking-uri", store])


@pytest.mark.parametrize("alias", ["", "v1", "Latest", "two words"])
def test_aliases_that_mlflow_refuses_are_refused(store: str, alias: str) -> None:
    with pytest.raises(InputError, match="--alias "):
        promote.main(promotion(store, "1", "--alias", alias))


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no database " * 400)
    with pytest.raises(InputError, match=r"cannot be opened .*not a database"):
        promote.main(promotion(f"sqlite:///{tmp_path / 'notes'}", "1"))


def test_registration_refuses_numbers_that_answer_nothing(world: World, evaluation: Path, store: str) -> None:
    for flag in ("--num-selected", "--max-new-tokens", "--first-level"):
        with pytest.raises(InputError, match=f"{flag} is -2; expected 1 or more"):
            register.main([*registration(world, evaluation, store, "before"), flag, "-2"])


def test_registration_refuses_what_was_not_evaluated(
    world: World, evaluation: Path, store: str, tmp_path: Path
) -> None:
    arguments = registration(world, evaluation, store, "before")
    swapped = [str(world.trained) if a == str(world.checkpoint) else a for a in arguments]
    with pytest.raises(InputError, match=r"--checkpoint: its manifest hash is .* was measured with"):
        register.main(swapped)
    with pytest.raises(InputError, match=r"--system 'best': .* has before, after"):
        register.main(["best" if a == "before" else a for a in arguments])
    with pytest.raises(InputError, match="no such file"):
        register.main([*arguments, "--metrics", str(tmp_path / "none.jsonl")])
    with pytest.raises(InputError, match="no version is registered"):
        promote.main(["--name", "nobody", "--version", "1", "--tracking-uri", store])


def test_an_evaluation_is_one_run_however_often_it_is_logged(evaluation: Path, store: str) -> None:
    run_id = track(evaluation, store, "clara")
    assert track(evaluation, store, "clara") == run_id
    client = mlflow.MlflowClient(store)
    report = json.loads((evaluation / "report.json").read_text())
    logged = client.get_run(run_id).data.metrics
    assert logged["unseen/after/gap.right_minus_wrong"] == pytest.approx(
        report["systems"]["after"]["unseen"]["gap.right_minus_wrong"]["value"]
    )
    assert "report.html" in {entry.path for entry in client.list_artifacts(run_id)}


def test_a_systems_name_may_have_any_character(
    evaluation: Path, empty_store: Callable[[Path], str], tmp_path: Path
) -> None:
    odd, store = tmp_path / "evaluation", empty_store(tmp_path)
    shutil.copytree(evaluation, odd)
    for name in ("report.json", "manifest.json"):
        text = (odd / name).read_text().replace('"before"', '"joint+5"').replace('"after"', '"joint_5"')
        (odd / name).write_text(text)
    data = mlflow.MlflowClient(store).get_run(track(odd, store, "clara")).data
    checkpoints = {
        name: value
        for name, value in data.params.items()
        if name.startswith("systems.joint_5") and "checkpoint" in name
    }
    systems = read_manifest(odd)["systems"]
    assert set(checkpoints.values()) == {of["checkpoint"] for of in systems.values()}
    assert checkpoints["systems.joint_5.checkpoint"] == systems["joint_5"]["checkpoint"]
    assert (
        len([name for name in data.metrics if "/joint_5/index.recall_at_1" in name]) == 4
    )  # two splits of two systems


def test_what_goes_wrong_while_an_evaluation_is_logged_ends_its_run(
    evaluation: Path, empty_store: Callable[[Path], str], tmp_path: Path
) -> None:
    broken, store = tmp_path / "evaluation", empty_store(tmp_path)
    shutil.copytree(evaluation, broken)
    (broken / "report.html").unlink()
    with pytest.raises(InputError, match=r"--tracking-uri .* refuses .*report.html.* without being made again"):
        track(broken, store, "clara")
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("clara").experiment_id])
    assert run.info.status == "FAILED"


def test_pointers_lead_to_paths_and_urls(tmp_path: Path) -> None:
    odd = tmp_path / "with space"
    assert local_path(odd.as_uri()) == local_path(str(odd)) == str(odd)
    assert local_path("gs://bucket/memory") == "gs://bucket/memory"
