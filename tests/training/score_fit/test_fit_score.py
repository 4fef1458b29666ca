"""fit_score as a command: from utilities of a fold to a CHECKPOINT, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clara.config.model import Score
from clara.data.questions import fold_of, read_questions
from clara.data.utilities import KIND, read_utilities, write_shard
from clara.errors import InputError
from clara.memory.shards import shard_name
from clara.model.artefact import Checkpoint
from clara.retrieval.bm25 import Bm25
from clara.retrieval.ranker import Queries
from clara.retrieval.retriever import Retriever
from clara.storage.manifest import read_manifest
from pipelines.score_utilities.command import main as score_utilities
from tests.helpers.evaluation_world import World
from training import fit_score, set_score
from training.score_fit.fit import cross_entropies
from training.score_fit.targets import target_mass


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


def scored(world: World, output: Path, *more: str) -> Path:
    command = ["--checkpoint", str(world.trained), "--memory", str(world.memory), "--index", str(world.index)]
    command += ["--questions", str(world.questions), "--split", "", "--output", str(output), "--num-workers", "1"]
    score_utilities([*command, "--pool-size", "8", *(more or ("--no-positives",))])
    return output


def made_helpful(utilities: Path) -> Path:
    """The same pools, as a reader would score them that half of the rows help; the tiny one is helped by none."""
    manifest = read_manifest(utilities, KIND)
    of = list(read_utilities(utilities).values())
    lower = [dataclasses.replace(s, without=float(np.median(s.log_likelihoods))) for s in of]
    (utilities / "manifest.json").unlink()
    entry = write_shard(utilities, shard_name(0, 1), lower)
    (utilities / "manifest.json").write_text(json.dumps({**manifest, "files": [entry]}))
    return utilities


@pytest.fixture(scope="module")
def utilities(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_helpful(scored(world, tmp_path_factory.mktemp("utilities") / "utilities"))


def arguments(world: World, utilities: Path, output: Path) -> list[str]:
    command = ["--checkpoint", str(world.trained), "--memory", str(world.memory), "--index", str(world.index)]
    return [*command, "--questions", str(world.questions), "--utilities", str(utilities), "--output", str(output)]


def without_utilities(world: World, utilities: Path, output: Path) -> list[str]:
    command = arguments(world, utilities, output)
    place = command.index("--utilities")
    return command[:place] + command[place + 2 :]


def test_a_checkpoint_with_the_weights_that_suit_the_utilities_best(
    world: World, utilities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_score.main(arguments(world, utilities, tmp_path / "fitted")) == 0
    assert "cross-entropy" in capsys.readouterr().out
    fusion = Checkpoint.open(tmp_path / "fitted").settings.fusion
    assert set(fusion.weights) == {"memory", "bm25"}
    # Brute force: no other weights near the fitted ones have a lower cross-entropy over every row.
    retriever = Retriever.open(tmp_path / "fitted", world.memory, world.index)
    store, of = retriever.store, read_utilities(utilities)
    asked = [q for q in read_questions(world.questions) if q.question_id in of]
    masses = [target_mass(of[q.question_id], store.row_ids, 1.0) for q in asked]
    chosen = [(q, mass) for q, mass in zip(asked, masses, strict=True) if mass is not None]
    texts = [q.question for q, _ in chosen]
    queries, every = Queries(texts, [()] * len(texts), retriever.queries(texts)), [store.row_ids.tolist()] * len(texts)
    memory = np.array(retriever.memory_ranker.score(queries, every)) / fusion.temperature
    features = np.stack([memory, np.array(Bm25.of_memory(store).score(queries, every))], axis=-1).astype(np.float32)
    allowed = np.ones(memory.shape, bool)
    for number, (question, _) in enumerate(chosen):
        allowed[number] = ~np.isin(store.row_ids, [r for d in question.exclude_ids for r in store.rows_of(d)])
    mass = np.stack([mass for _, mass in chosen])
    best = np.array([fusion.weights["memory"], fusion.weights["bm25"]])
    here = cross_entropies(features, mass, allowed, best).mean()
    for step in ((0.05, 0.0), (-0.05, 0.0), (0.0, 0.05), (0.0, -0.05)):
        other = np.maximum(best + np.array(step), 0)
        assert cross_entropies(features, mass, allowed, other).mean() >= here - 1e-5
    assert fit_score.main(arguments(world, utilities, tmp_path / "fitted")) == 0
    assert "up to date" in capsys.readouterr().out


def test_weights_that_depend_on_the_query_are_compared_and_change_nothing(
    world: World, utilities: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_score.main([*arguments(world, utilities, tmp_path / "compared"), "--compare-head"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "head, penalty" in line]
    assert [line.split()[2] for line in lines] == ["0.03:", "0.3:", "3:"]
    fit_score.main(arguments(world, utilities, tmp_path / "fitted"))
    one, other = (Checkpoint.open(tmp_path / name).settings.fusion for name in ("compared", "fitted"))
    assert one == other
    with pytest.raises(InputError, match="--compare-head measures by utilities; give --utilities"):
        fit_score.main([*without_utilities(world, utilities, tmp_path / "none"), "--compare-head"])


def test_the_rest_of_the_checkpoint_is_the_same(world: World, utilities: Path, tmp_path: Path) -> None:
    fit_score.main(arguments(world, utilities, tmp_path / "fitted"))
    before, after = Checkpoint.open(world.trained).manifest, Checkpoint.open(tmp_path / "fitted").manifest
    assert {e["path"]: e["sha256"] for e in after["files"]} == {e["path"]: e["sha256"] for e in before["files"]}
    assert {**after["model"], "fusion": None} == {**before["model"], "fusion": None}


def test_utilities_of_something_else_are_refused(world: World, utilities: Path, tmp_path: Path) -> None:
    with_positives = scored(world, tmp_path / "positives", "--from-index", "2")
    with pytest.raises(InputError, match="pools hold positives, which no source has found"):
        fit_score.main(arguments(world, with_positives, tmp_path / "x"))
    one_source = scored(world, tmp_path / "one", "--no-positives", "--from-index", "0")
    with pytest.raises(InputError, match=r"come from \['bm25'\]; the weights of several sources"):
        fit_score.main(arguments(world, one_source, tmp_path / "x"))
    other = arguments(world, utilities, tmp_path / "x")
    other[other.index("--checkpoint") + 1] = str(world.checkpoint)
    with pytest.raises(InputError, match=r"scored with reader [0-9a-f]{12}…, given is"):
        fit_score.main(other)


def test_utilities_that_nothing_helps_are_nothing_to_fit_to(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row that was read helps any of them"):
        fit_score.main(arguments(world, scored(world, tmp_path / "utilities"), tmp_path / "x"))


def test_a_joint_reader_needs_a_fold_that_it_was_kept_from(world: World, utilities: Path, tmp_path: Path) -> None:
    joint = tmp_path / "joint"
    shutil.copytree(world.trained, joint)

    def trained(fit_share: float) -> None:
        manifest = json.loads((joint / "manifest.json").read_text())
        manifest |= {"stage": "joint", "fit_share": fit_share}
        (joint / "manifest.json").write_text(json.dumps(manifest))

    given = arguments(world, utilities, tmp_path / "x")
    given[given.index("--checkpoint") + 1] = str(joint)
    trained(0.0)
    with pytest.raises(InputError, match=r"kept from 0 of them\. It has memorised the others"):
        fit_score.main(given)
    in_fold = made_helpful(scored(world, tmp_path / "fold", "--no-positives", "--fold", "0.5"))
    given[given.index("--utilities") + 1] = str(in_fold)
    trained(0.3)
    with pytest.raises(InputError, match=r"of a fold of 0\.5 of the targets, .* was kept from 0\.3 of them"):
        fit_score.main(given)
    trained(0.5)
    assert fit_score.main(given) == 0
    assert Checkpoint.open(tmp_path / "x").manifest["fit_share"] == 0.5


def test_the_fold_has_its_own_targets_and_shuffled_answers_are_scored(world: World, tmp_path: Path) -> None:
    questions = read_questions(world.questions)
    inside, outside = fold_of(questions, 0.5)
    assert inside
    assert outside
    assert not {d for q in inside for d in q.positive_ids} & {d for q in outside for d in q.positive_ids}
    assert fold_of(questions, 0.0) == ([], questions)
    # A larger share holds the smaller one.
    assert {q.question_id for q in fold_of(questions, 0.2)[0]} <= {q.question_id for q in inside}
    in_fold = read_utilities(scored(world, tmp_path / "fold", "--no-positives", "--fold", "0.5"))
    assert set(in_fold) == {q.question_id for q in inside}
    shuffled = read_utilities(scored(world, tmp_path / "s", "--no-positives", "--fold", "0.5", "--shuffle-answers"))
    assert any(shuffled[name].without != in_fold[name].without for name in in_fold)
    with pytest.raises(InputError, match=r"--fold 1e-09: no question of .* is in it"):
        scored(world, tmp_path / "none", "--no-positives", "--fold", "1e-9")


def test_set_score_keeps_what_is_not_given(world: World, tmp_path: Path) -> None:
    given = ["--checkpoint", str(world.checkpoint)]
    weights = ["--set", "model.fusion.weights.bm25=0.5", "--set", "model.fusion.weights.memory=0.25"]
    set_score.main([*given, "--output", str(tmp_path / "a"), *weights])
    assert Checkpoint.open(tmp_path / "a").settings.fusion.weights == {"bm25": 0.5, "memory": 0.25}
    set_score.main(["--checkpoint", str(tmp_path / "a"), "--output", str(tmp_path / "b"), "--pooling", "slot_mean"])
    settings = Checkpoint.open(tmp_path / "b").settings
    assert settings.score == Score(pooling="slot_mean")
    assert settings.fusion.weights == {"bm25": 0.5, "memory": 0.25}
    assert settings.question_keeps == "beginning"
    set_score.main(["--checkpoint", str(tmp_path / "b"), "--output", str(tmp_path / "d"), "--question-keeps", "end"])
    assert Checkpoint.open(tmp_path / "d").settings == settings.model_copy(update={"question_keeps": "end"})
    with pytest.raises(InputError, match="nothing to set"):
        set_score.main([*given, "--output", str(tmp_path / "c")])
    with pytest.raises(InputError, match="greater than or equal to 0"):
        set_score.main([*given, "--output", str(tmp_path / "c"), "--set", "model.fusion.weights.bm25=-1"])
