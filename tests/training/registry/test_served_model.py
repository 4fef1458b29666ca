"""A registered version as others load and serve it: with its own code, and with our words where it refuses."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from clara.config.tree import Retrieval
from clara.errors import InputError
from clara.model.artefact import Checkpoint
from clara.storage.artefact import Artefact
from tests.helpers.evaluation_world import World
from tests.helpers.registry import QUESTIONS, evaluation, own_world, registration, store
from training import register
from training.registry.model_folder import requirements
from training.registry.registration import Registration

__all__ = ["evaluation", "own_world", "store"]  # fixtures

# What loads the version: an environment in which this package is not installed.
LOADING = """
import importlib.util, json, sys
root, uri = sys.argv[1:]
sys.path[:] = [p for p in sys.path if p != root]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
assert all(importlib.util.find_spec(p) is None for p in ("clara", "training", "pipelines", "infra"))
import mlflow
print(json.dumps(mlflow.pyfunc.load_model(uri).predict(["Who is the mayor of Arlen?"], params={"num_selected": 1})))
"""


def away(*_: object, **__: object) -> None:
    raise AssertionError("a server of MLflow 2 has no logged models")


@pytest.fixture(scope="module")
def version(own_world: World, evaluation: Path, store: str) -> str:
    """A version that was registered as a store of MLflow 2 allows it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_logged_model", "search_logged_models", "get_logged_model", "finalize_logged_model"):
            patch.setattr(SqlAlchemyStore, name, away)
        assert register.main(registration(own_world, evaluation, store, "before")) == 0
    found = mlflow.MlflowClient().search_model_versions("name = 'towns'")[0]
    assert mlflow.MlflowClient().get_run(found.run_id).info.status == "FINISHED"
    return f"models:/towns/{found.version}"


@pytest.fixture(scope="module")
def served(version: str) -> PyFuncModel:
    return mlflow.pyfunc.load_model(version)


def test_a_table_is_read_if_its_one_column_is_question(served: PyFuncModel):
    table = pd.DataFrame({"id": ["7", "8"], "question": QUESTIONS})
    asked = table[["question"]]
    assert [reply["question"] for reply in served.predict(asked)] == QUESTIONS
    assert served.predict(asked) == served.predict(QUESTIONS)
    with pytest.raises(InputError, match="a table with the columns id; expected one column question"):
        served.predict(table[["id"]])
    with pytest.raises(InputError, match="a table with the columns id, question; expected one column question and no"):
        served.predict(table)


def test_unknown_parameters_are_refused(served: PyFuncModel):
    with pytest.raises(InputError, match="params has 'k'; expected num_selected or max_new_tokens"):
        served.predict(QUESTIONS, params={"k": 5, "num_selected": 1})
    assert len(served.predict(QUESTIONS[:1], params={"num_selected": 1})[0]["documents"]) == 1


def test_its_environment_has_this_packages_wheel(served: PyFuncModel, version: str):
    folder = Path(mlflow.artifacts.download_artifacts(version))
    links, own, *pins = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    (wheel,) = (folder / links.removeprefix("--find-links ")).iterdir()
    named, number = own.split("==")
    assert wheel.name == f"{named.replace('-', '_')}-{number}-py3-none-any.whl"
    assert "+src." in number  # no package index has it
    assert any(pin.startswith("mlflow==") for pin in pins)
    with zipfile.ZipFile(wheel) as file:
        assert {"clara/system.py", "training/register.py"} <= set(file.namelist())


def test_over_http(served: PyFuncModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", raising=False)
    with TestClient(scoring_server.init(served)) as client:
        expected = served.predict(QUESTIONS[:1])
        rows = {"columns": ["question"], "data": [[QUESTIONS[0]]]}
        for body in (
            {"inputs": QUESTIONS[:1]},
            {"dataframe_split": rows},
            {"inputs": {"question": QUESTIONS[:1]}},
            {"dataframe_records": [{"question": QUESTIONS[0]}]},
        ):
            answer = client.post("/invocations", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"] == expected
        one = client.post("/invocations", json={"inputs": QUESTIONS[:1], "params": {"num_selected": 1}}).json()
        assert len(one["predictions"][0]["documents"]) == 1
        for body, words in (
            ({"inputs": [QUESTIONS[0], ""]}, "question 2 is ''; expected some text"),
            ({"inputs": QUESTIONS, "params": {"num_selected": 0}}, "params.num_selected is 0; expected"),
            ({"inputs": QUESTIONS, "params": {"num_selected": 10_000}}, "num_selected is 10000, the MEMORY holds"),
            ({"inputs": QUESTIONS, "params": {"passages": 1}}, "params has 'passages'; expected num_selected or"),
            ({"inputs": QUESTIONS, "params": {"num_selected": "two"}}, "num_selected"),
            ({"dataframe_split": {"columns": ["id"], "data": [["7"]]}}, "expected one column question"),
            ({"dataframe_records": [{"id": "7", "question": QUESTIONS[0]}]}, "the columns id, question; expected one"),
        ):
            answer = client.post("/invocations", json=body)
            assert answer.status_code == 400, answer.text
            assert words in answer.json()["message"]


@pytest.mark.slow
def test_it_loads_where_this_package_is_not_installed(served: PyFuncModel, version: str, store: str, tmp_path: Path):
    root = str(Path(register.__file__).parents[1])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-c", LOADING, root, version]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])
    (expected,) = served.predict(["Who is the mayor of Arlen?"], params={"num_selected": 1})
    assert found["answer"] == expected["answer"]
    assert [d["text"] for d in found["documents"]] == [d["text"] for d in expected["documents"]]
    assert found["scores"] == pytest.approx(expected["scores"], rel=1e-4)  # by another number of threads


def test_requirements_name_what_the_artefacts_and_the_embedding_model_need():
    def needed(dense: Retrieval, memory: str) -> set[str]:
        checkpoint = Checkpoint("CHECKPOINT", "c", Path("c"), {})
        opened, evaluation = Artefact("MEMORY", memory, Path("m"), {}), Artefact("EVALUATION", "e", Path("e"), {})
        there = Registration("m", checkpoint, opened, None, evaluation, "s", "", 1, 1, 1, 1, "cpu", dense)
        return {line.partition("==")[0] for line in requirements(there)}

    plain = needed(Retrieval(), "memory")
    assert {"torch", "transformers", "mlflow"} <= plain
    assert not {"openai", "sentence-transformers", "s3fs", "gcsfs", "ray"} & plain
    assert needed(Retrieval(dense_model="folder"), "s3://b/memory") - plain == {"sentence-transformers", "s3fs"}
    endpoint = Retrieval(dense_model="http://localhost:8000/v1", dense_name="e5")
    assert needed(endpoint, "gs://b/memory") - plain == {"openai", "gcsfs"}
