"""The benchmark of the HTTP service: its figures, its variant over raw text, and a whole run with the tiny model."""

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from benchmarks import serving
from benchmarks.serving_load import Timing, differing, figures, load, running
from benchmarks.serving_report import markdown, ratio, ratios
from benchmarks.text_service import TextRetriever
from clara.errors import InputError
from clara.model.decoding import answer_text, generate
from tests.helpers.evaluation_world import World
from training.evaluation.readers import Reading, TextReader


def test_figures_of_a_point() -> None:
    timings = [Timing(0.1 * n, 0.2 * n) for n in range(1, 102)]
    found = figures(timings, 50.5, 202.0)
    assert found["answers_per_second"] == pytest.approx(2.0)
    assert found["processor_seconds_per_answer"] == pytest.approx(2.0)
    assert (found["first_p50"], found["whole_p99"]) == pytest.approx((5.1, 20.0))


def test_answers_are_compared_with_those_one_by_one() -> None:
    timings = [Timing(1, 1, "a", "x"), Timing(1, 1, "b", "y"), Timing(1, 1, "c", "z")]
    assert differing(timings, {"a": "x", "b": "w"}) == {"compared": 2, "differ": 1}


def test_every_question_is_asked_once_by_as_many_clients_as_there_are() -> None:
    asked, lock, together, most = list[str](), threading.Lock(), 0, 0

    def ask(question: str) -> Timing:
        nonlocal together, most
        with lock:
            asked.append(question)
            together += 1
            most = max(most, together)
        time.sleep(0.02)
        with lock:
            together -= 1
        return Timing(0.01, 0.02)

    timings, seconds = load(ask, [f"q{n}" for n in range(9)], 3)
    assert sorted(asked) == [f"q{n}" for n in range(9)]
    assert (len(timings), most) == (9, 3)
    assert seconds >= 0.06

    def fails(_: str) -> Timing:
        raise RuntimeError("status 429")

    with pytest.raises(RuntimeError, match="429"):
        load(fails, ["q"] * 4, 2)


def point(name: str, clients: int, value: float) -> dict[str, object]:
    keys = (*("answers_per_second", "processor_seconds_per_answer"), *("first_p50", "first_p99"))
    return {"name": name, "clients": clients, **dict.fromkeys((*keys, "whole_p50", "whole_p99"), value)}


def test_ratios_are_of_the_same_round() -> None:
    rounds = [
        {"points": [point("ask", 1, 1.0), point("memory", 8, a), point("text", 8, b), point("mlflow", 8, 2.0)]}
        for a, b in ((1.0, 2.0), (10.0, 40.0), (3.0, 3.0))
    ]
    own = {"name": "memory", "clients": 8, "figure": "first_p50"}
    assert ratio(rounds, own, own | {"name": "text"}) == {"median": 0.5, "min": 0.25, "max": 1.0}
    found = {"rounds": rounds, "ratios": ratios(rounds, [8]), "notes": ["Short."], "start_seconds": {"memory": 3.25}}
    about = {"command": "c", "processor": "p", "cores": 2, "torch_threads": 1, "gpu": "", "load_average": [1.0]}
    rounds[0]["points"][1] |= {"compared": 8, "differ": 1}
    rounds[1]["points"][1] |= {"compared": 8, "differ": 2}
    found["dtype"] = "bfloat16"
    report = markdown(found | {"about": about, "rows": 40, "passages": 2, "tokens": 4, "answers": 8})
    assert "| 8 | first token, of raw text's | **0.50×** [0.25, 1.00] |" in report
    assert "| `clara serve`, memory | 8 | 3.00 |" in report
    assert "Short." in report
    assert "in bfloat16:\n\n* `clara serve`, memory, 8 client(s): 3 of 16\n" in report


def test_a_scoring_server_has_as_much_time_as_a_service(tmp_path: Path) -> None:
    code = """
import http.server, os, sys
class Says(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"].encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Says).serve_forever()
"""
    port = serving.free_port()
    with running([sys.executable, "-c", code, str(port)], port, "/", tmp_path / "log", 77.0):
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").read() == b"77"


def test_raw_text_is_read_as_the_evaluation_reads_it(evaluation_artefacts: World) -> None:
    world, question = evaluation_artefacts, "What does the market of Arlen on the Tamo sell?"
    retriever = TextRetriever.open(str(world.checkpoint), str(world.memory), str(world.index))
    (hits,) = retriever.hits([question], 2)
    row = retriever.generation(question, hits, 4)
    expected = TextReader(retriever).prompt(Reading(question, "", tuple(hit.row_id for hit in hits)), None)
    assert (row.prompt.left, row.prompt.right) == (expected.left, expected.right)
    assert row.memory is not None
    assert torch.equal(row.memory, torch.zeros(0, *row.memory.shape[1:]))
    (done,) = generate(retriever.model, iter([row]), 1)
    assert isinstance(answer_text(retriever.model, done.tokens), str)


def test_what_cannot_be_measured_is_refused() -> None:
    given = ["--checkpoint=c", "--memory=m", "--index=i", "--questions=q"]
    with pytest.raises(InputError, match="expected 1 or more each"):
        serving.main([*given, "--answers=0"])
    assert serving.main([*given, "--dry-run"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_run(evaluation_artefacts: World, tmp_path: Path) -> None:
    world = evaluation_artefacts
    given = ["--checkpoint", world.checkpoint, "--memory", world.memory, "--index", world.index]
    given += ["--questions", world.questions, "--clients", 1, 3, "--answers", 4, "--repeats", 2, "--tokens", 3]
    assert serving.main([*map(str, given), "--passages=2", "--note=Tiny.", f"--output={tmp_path}"]) == 0
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    names = [(p["name"], p["clients"]) for p in found["rounds"][0]["points"]]
    assert names == [("ask", 1), *((name, n) for n in (1, 3) for name in ("memory", "text", "mlflow"))]
    for each in (p for r in found["rounds"] for p in r["points"]):
        assert 0 < each["first_p50"] <= each["whole_p50"] <= each["whole_p99"]
        assert each["processor_seconds_per_answer"] > 0
        assert each.get("differ", 0) == 0, "float32"
        assert each["name"] in ("ask", "text") or each["compared"] > 0
    assert set(found["start_seconds"]) == {"memory", "text", "mlflow"}
    assert "Tiny." in (tmp_path / "results.md").read_text(encoding="utf-8")
