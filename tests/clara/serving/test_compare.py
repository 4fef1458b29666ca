"""A second system beside the first, for the page that compares them."""

import pytest

import clara
from clara.errors import InputError
from clara.serving import command
from clara.system import System
from tests.helpers.evaluation_world import World
from tests.helpers.http_service import client_of

ASKED = {"question": "What does the market of Jorvik on the Wend sell?", "passages": 3, "max_tokens": 9}


@pytest.fixture(scope="module")
def other(evaluation_artefacts: World) -> System:
    world = evaluation_artefacts
    return clara.open(world.trained, world.memory, world.index)


def test_each_answers_below_its_own_path(system: System, other: System) -> None:
    with client_of(system, against=other, key="secret") as client:
        headers = {"Authorization": "Bearer secret"}
        for path, asked in (("/v1/answers", system), ("/against/v1/answers", other)):
            assert client.post(path, json=ASKED).status_code == 401
            expected = asked.ask(ASKED["question"], passages=3, max_new_tokens=9)  # type: ignore[call-overload]
            found = client.post(path, json=ASKED, headers=headers).json()
            assert (found["text"], [p["row_id"] for p in found["passages"]]) == (
                expected.text,
                [str(p.row_id) for p in expected.passages],
            )
        stages = [
            client.get(f"{prefix}/v1/lineage", headers=headers).json()["artefacts"][0]["fields"]["stage"]
            for prefix in ("", "/against")
        ]
        assert stages == ["pretrain", "instruct"]
        assert "/against/v1/answers" in client.get("/openapi.json").json()["paths"]


def test_without_a_second_one_there_is_no_such_path(system: System) -> None:
    with client_of(system) as client:
        assert client.post("/against/v1/answers", json=ASKED).status_code == 404
        assert "/against/v1/answers" not in client.get("/openapi.json").json()["paths"]


def test_the_command_opens_both_and_refuses_what_is_no_system(
    evaluation_artefacts: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world = evaluation_artefacts
    given = [f"--checkpoint={world.checkpoint}", f"--memory={world.memory}", "--port=0", "--dry-run"]
    assert command.main([*given, f"--against={world.trained},{world.memory},{world.index}"]) == 0
    assert "80 rows, fits " in capsys.readouterr().out
    for wrong in ("a", "a,b,c,d", "a,,c", ",b"):
        with pytest.raises(InputError, match=r"--against .*: expected CHECKPOINT,MEMORY or CHECKPOINT,MEMORY,INDEX"):
            command.main([*given, f"--against={wrong}"])
    with pytest.raises(InputError, match="nowhere"):
        command.main([*given, f"--against={world.trained},{world.memory}/nowhere"])
