"""The baseline: a generator of the same rank that reads the passages' text, trained by stage joint."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clara.config.load import load
from clara.config.model import Backbone
from clara.data.questions import read_questions
from clara.data.records import input_text
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.model.checkpoint import load_checkpoint
from clara.retrieval.retriever import Retriever
from clara.retrieval.utilities import row_utility, score_pool
from tests.helpers.joint_world import World
from training import joint
from training.evaluation.pairs import evaluate_system
from training.evaluation.systems import Settings
from training.loop.engine import LocalEngine
from training.loop.lines import read
from training.refresh.versions import Versions
from training.stages.joint_stage import JointStage

TEXT = {"joint__reads": "text", "joint__train_query_reasoner": "false"}


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CHECKPOINT of standard RAG after a few steps."""
    output = tmp_path_factory.mktemp("rag")
    assert joint.main(["--launcher", "local", *world.sets(output, **TEXT)]) == 0
    return output / "checkpoint"


@pytest.fixture(scope="module")
def retriever(world: World, trained: Path) -> Retriever:
    return Retriever.open(trained, world.memory, world.index)


def test_a_step_reads_the_texts_of_the_best_candidates(world: World, tmp_path: Path) -> None:
    config = load(None, [part for part in world.sets(tmp_path, **TEXT) if part != "--set"])
    model = load_checkpoint(world.checkpoint, Backbone(dtype="float32")).eval()
    stage = JointStage(
        model, read_questions(world.questions, "train"), config, Versions(config, tmp_path, tmp_path, None, 1)
    )
    stage.begin(LocalEngine(stage.module, stage.groups(), stage.optimiser))
    store = stage.candidates.store
    (batch, *_) = stage.micro_batches(0, 0, 1)
    rows = torch.from_numpy(store.memory(store.row_ids))
    query_BMD, prompts = model.query(batch.questions), []
    for number, pool in enumerate(batch.texts):
        memory = batch.memory[number][batch.valid[number]]
        cosines = torch.cosine_similarity(query_BMD[number].flatten()[None], memory.flatten(1))
        best = cosines.argsort(descending=True)[:2]
        same = [int((rows - memory[n]).abs().sum(dim=(1, 2)).argmin()) for n in best.tolist()]
        passages = [input_text(c.title, c.text) for c in store.records(store.row_ids[same].tolist())]
        prompts.append(model.prompts.question(pool.question, pool.answer, passages))
    nothing = [torch.zeros(0, model.num_memory_tokens, model.hidden_size)] * len(prompts)
    plain = model.answer_losses(prompts, nothing, role=None)  # the adapter begins again, where it changes nothing
    wanted = plain.nll.sum() / batch.weight
    found = stage.module.eval()(batch, batch.weight, len(batch.questions))
    assert found.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_only_the_generator_trains_and_the_checkpoint_says_what_it_reads(world: World, trained: Path) -> None:
    before, after = (load_checkpoint(path, Backbone(dtype="float32")) for path in (world.checkpoint, trained))
    for role in ("compressor", "query_reasoner", "generator"):
        pairs = zip(before.role_parameters(role), after.role_parameters(role), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (role != "generator")
    assert Checkpoint.open(trained).settings.reads == "text"
    (run,) = trained.parent.glob("run-*")
    assert all(np.isfinite(line["answer_nats"]) for line in read(run / "metrics.jsonl").values())


def test_it_answers_from_the_text_of_what_is_found(retriever: Retriever, world: World) -> None:
    question = read_questions(world.questions)[0].question
    (answered,) = retriever.ask([question], num_selected=2, max_new_tokens=4)
    hits = retriever.hits([question], 2)[0]
    texts = [input_text(p.title, p.text) for p in answered.passages]
    assert retriever.texts([hit.row_id for hit in hits]) == texts
    generation = retriever.generation(question, hits, 4)
    prompt = retriever.model.tokenizer.decode(generation.prompt.right)
    assert all(text in prompt for text in texts)
    assert generation.memory.shape[0] == 0


def test_the_utility_of_a_passage_is_that_of_its_text(retriever: Retriever) -> None:
    rows = retriever.store.row_ids[:2].tolist()
    found = row_utility(retriever, "Where?", "salt", rows, rows[1], 8)
    model = retriever.model
    prompts = [model.prompts.question("Where?", "salt", retriever.texts(kept)) for kept in (rows, rows[:1])]
    empty = [torch.zeros(0, model.num_memory_tokens, model.hidden_size)] * 2
    with torch.no_grad():
        given, without = (-model.answer_losses(prompts, empty).per_row()).tolist()
    assert (found.given, found.without) == (pytest.approx(given), pytest.approx(without))


def test_an_evaluation_reads_text_with_the_trained_adapter(retriever: Retriever, world: World) -> None:
    questions = read_questions(world.questions, "train")[:3]
    settings = Settings(num_selected=2, baselines=("bm25", "text"), conditions=("index",))
    rows = evaluate_system("rag", retriever, questions, settings, with_text=True)
    of = {(row["system"], row["question_id"]): row for row in rows}
    for question in questions:
        hits = retriever.hits([question.question], 2)[0]
        prompt = retriever.model.prompts.question(
            question.question, question.answers[0], retriever.texts([hit.row_id for hit in hits])
        )
        empty = torch.zeros(0, retriever.model.num_memory_tokens, retriever.model.hidden_size)
        with torch.no_grad():
            wanted = -float(retriever.model.answer_losses([prompt], [empty]).nll.sum())
        row = of["rag", question.question_id]
        if tuple(question.exclude_ids) == ():
            assert row["index.log_likelihood"] == pytest.approx(wanted, abs=1e-3)
        assert row["index.log_likelihood"] != of["text/bm25", question.question_id]["index.log_likelihood"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"joint__train_query_reasoner": "true"}, r"joint\.train_query_reasoner=true needs one that reads memory"),
        ({"joint__utility_weight": 1}, r"joint\.utility_weight=1\.0 needs"),
        ({"joint__evaluate_every": 1}, r"joint\.evaluate_every=1 needs"),
        ({"joint__answer_weight": 0, "joint__train_generator": "false"}, "the generator does not train|nothing is"),
    ],
)
def test_what_needs_memory_is_refused(world: World, tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "out", **(TEXT | changed))])


def test_a_generator_that_reads_text_is_not_trained_on_memory(world: World, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"joint\.reads is 'memory', and the generator of the CHECKPOINT has learned"):
        joint.main(["--launcher", "local", *world.sets(tmp_path / "out", checkpoint=trained)])


def test_it_scores_no_utilities_of_memory(retriever: Retriever, world: World) -> None:
    question = read_questions(world.questions, "train")[0]
    with pytest.raises(InputError, match="utilities are what their memory is worth"):
        score_pool(retriever, question, retriever.store.row_ids[:2].tolist())
