"""Prompts of an embedding model in a folder: given, or its own; the evaluation says which."""

import json
from pathlib import Path

import pytest
import torch

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command
from clara.config.tree import Retrieval
from clara.index.dense_model import model_hash, open_encoder, prompts_of
from tests.helpers import embedding_model
from training.evaluate import dense_counts


def test_prompts_of_a_folder_are_given_or_its_own(tmp_path: Path) -> None:
    folder = embedding_model.write(tmp_path / "tiny-e5")
    plain = open_encoder(Retrieval(dense_model=str(folder)))
    assert prompts_of(Retrieval(dense_model=str(folder))) == ("", "")
    asked = Retrieval(dense_model=str(folder), dense_question_prompt="query: ", dense_text_prompt="passage: ")
    encoder = open_encoder(asked)
    assert encoder.hash == model_hash(asked) != plain.hash
    assert encoder.description()["prompts"] == {"query": "query: ", "document": "passage: "}
    given = encoder.embed_questions(["why"])
    torch.testing.assert_close(given, plain.embed_questions(["query: why"]))

    prompts = {"query": "query: ", "passage": "passage: "}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    own = Retrieval(dense_model=str(folder))
    assert prompts_of(own) == ("query: ", "passage: ")
    torch.testing.assert_close(open_encoder(own).embed_questions(["why"]), given)


def test_the_report_says_which_prompts_were_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, warned in (("tiny-e5", True), ("other", False)):
        caplog.clear()
        folder = embedding_model.write(tmp_path / name)
        none = {"dense: prompt of questions": "none", "dense: prompt of texts": "none"}
        assert dense_counts(Retrieval(dense_model=str(folder))) == none
        assert ("--dense-prompts" in caplog.text) == warned
    flags = ["--dense-model", "a", "--dense-prompts", "query: ", "passage: "]
    parser = Command("training.evaluate", "")
    add_dense_settings(parser)
    asked = parser.parse_args(flags).config.retrieval.model_copy(update={"dense_model": str(folder)})
    assert dense_counts(asked) == {
        "dense: prompt of questions": "'query: '",
        "dense: prompt of texts": "'passage: '",
    }
