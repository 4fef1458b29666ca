"""The record of promotions: floors for the first version too, what is kept of each decision, and the way back."""

import json
from pathlib import Path

import mlflow
import pytest

from clara.errors import InputError
from infra import cli
from tests.helpers.evaluation_world import World
from tests.helpers.registry import MODEL, own_world, promotion, registration, store
from training import evaluate, promote, register
from training.registry.record import Entry, holders
from training.registry.registered_system import reports_of

__all__ = ["own_world", "store"]  # fixtures


@pytest.fixture(scope="module")
def evaluation(own_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EVALUATION of both systems on the unseen questions, beside BM25."""
    output = tmp_path_factory.mktemp("evaluation") / "evaluation"
    systems = [
        f"{n}={c},{own_world.memory},{own_world.index}"
        for n, c in (("before", own_world.checkpoint), ("after", own_world.trained))
    ]
    given = ["--questions", str(own_world.questions), "--output", str(output), "--num-selected", "2", "--generate", "0"]
    given += [
        "--splits",
        "unseen",
        "--baselines",
        "bm25",
        "--timed",
        "2",
        "--system",
        systems[0],
        "--system",
        systems[1],
    ]
    assert evaluate.main(given) == 0
    return output


def shown(store: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert cli.main(["registry", MODEL, f"--tracking-uri={store}", *more]) == 0
    return capsys.readouterr().out


def test_floors_record_and_rollback(
    own_world: World, evaluation: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for system in ("before", "after"):
        assert register.main(registration(own_world, evaluation, store, system)) == 0
    with_floors = [argument for argument in promotion(store, "1") if argument != "--floors="]

    # An untrained retriever finds less than BM25: no alias, although nobody holds it.
    assert promote.main([*with_floors, "--dry-run"]) == promote.NOT_PROMOTED
    assert "none on record" in shown(store, capsys)
    assert promote.main(with_floors) == promote.NOT_PROMOTED
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("towns version 1 not promoted to champion: does not reach the floor index.")
    client = mlflow.MlflowClient()
    assert client.get_registered_model(MODEL).aliases == {}
    with pytest.raises(InputError, match="'champion': no version of towns holds it"):
        promote.main(["--name", MODEL, "--rollback", "--tracking-uri", store])

    # Latency is a floor too; both reports can be read for the service's page.
    assert promote.main([*with_floors, "--floors=answer.seconds<=0", "--dry-run"]) == promote.NOT_PROMOTED
    assert "does not reach the floor answer.seconds<=0: +0." in capsys.readouterr().out
    report = reports_of(["--model=models:/towns/1", f"--tracking-uri={store}"])
    assert report is not None
    assert report("2") == json.loads((evaluation / "report.json").read_text())
    assert report("3") is None

    # A floor that it reaches; then a better one takes over.
    assert promote.main([*with_floors, "--floors=index.log_likelihood>=-1000"]) == 0
    with pytest.raises(InputError, match="nobody held champion of towns before version 1, by the record"):
        promote.main(["--name", MODEL, "--rollback", "--tracking-uri", store])
    assert promote.main(promotion(store, "2")) == 0
    found = json.loads(shown(store, capsys, "--json"))
    assert found["aliases"] == {"champion": "2"}
    assert [version["aliases"] for version in found["versions"]] == [[], ["champion"]]
    refused, first, second = found["record"]
    assert [entry["outcome"] for entry in found["record"]] == ["refused", "promoted", "promoted"]
    assert (refused["version"], refused["before"], refused["test"]) == ("1", None, None)
    assert {floor["floor"] for floor in refused["floors"]} == {"index.log_likelihood>=bm25", "index.recall@5>=bm25"}
    assert first["floors"][0]["reached"] is True
    assert (second["version"], second["before"]) == ("2", "1")
    assert second["test"]["difference"] > 0
    assert second["questions"] == found["versions"][1]["questions_hash"] != ""

    # Back to version 1, and no further.
    back = ["promote", "--name", MODEL, "--rollback", f"--tracking-uri={store}"]
    assert cli.main([*back, "--dry-run"]) == 0
    assert str(client.get_model_version_by_alias(MODEL, "champion").version) == "2"
    assert cli.main(back) == 0
    assert "towns version 1 has champion back from version 2" in capsys.readouterr().out
    assert str(client.get_model_version_by_alias(MODEL, "champion").version) == "1"
    with pytest.raises(InputError, match="nobody held champion of towns before version 1"):
        cli.main(back)
    text = shown(store, capsys)
    assert "version 1 (champion)" in text
    assert "version 1 rolled back (version 2 held it)" in text
    assert "floor index.recall@5>=bm25 not reached" in text

    # A version that is deleted cannot come back.
    assert promote.main(promotion(store, "2")) == 0
    client.delete_model_version(MODEL, "1")
    with pytest.raises(InputError, match="version 1 of towns, which held champion before version 2, was deleted"):
        cli.main(back)


def entry(version: str, before: str | None, outcome: str = "promoted", alias: str = "champion") -> Entry:
    return Entry(alias, version, before, outcome, "")  # type: ignore[arg-type]


def test_the_record_is_a_stack_of_holders() -> None:
    record = [entry("1", None), entry("2", "1"), entry("3", "2", "refused"), entry("4", None, alias="other")]
    assert holders(record, "champion") == ["1", "2"]
    assert holders(record, "nobody") == []
    record += [entry("3", "2"), entry("2", "3", "rolled back")]
    assert holders(record, "champion") == ["1", "2"]
    assert holders([*record, entry("1", "2", "rolled back")], "champion") == ["1"]
    # Moved by other means in between: what held it when the next decision was made.
    assert holders([*record, entry("6", "5")], "champion") == ["1", "2", "5", "6"]
    assert holders([*record, entry("6", None)], "champion") == ["6"]
