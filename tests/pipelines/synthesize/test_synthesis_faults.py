"""The synthesis job under faults: misbehaving endpoints, outages, kills, two jobs at once."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clara.data.examples import read_examples
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from pipelines.synthesize.command import main
from tests.helpers import tiny
from tests.helpers.language_model import LanguageModel, sense
from tests.helpers.synthesis_command import NUM_DOCUMENTS, Run, command, letters, same


def faults(user: str, before: int) -> str:
    """The first try of three prompts in four goes wrong, each in its own way."""
    kinds = ("429", "500", "503", "shape", "cut", "closed", "", "")
    return kinds[hashlib.sha256(user.encode()).digest()[0] % len(kinds)] if before == 0 else ""


@pytest.mark.slow
def test_a_misbehaving_endpoint_leads_to_the_same_artefact(
    run: Run, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LanguageModel(fault=faults).running() as model:
        output = run(model, "--price-prompt=2", "--price-reply=10")
        assert same(output, clean)
        assert set(model.paid.values()) == {1}, "nothing is paid twice"
        done = Counter(s.done for s in model.seen)
        assert min(done[kind] for kind in ("429", "500", "503", "shape", "cut", "closed")) > 5
        spent = json.loads((output / "spending.json").read_text())["this run"]
        assert (spent["sent"], spent["paid"]) == (len(model.seen), done["paid"])
        assert sum(spent["retries"].values()) == len(model.seen) - spent["paid"]
        counts = read_manifest(output)["counts"]
        assert (spent["prompt_tokens"], spent["reply_tokens"]) == (counts["prompt tokens"], counts["reply tokens"])
        cost = (2 * spent["prompt_tokens"] + 10 * spent["reply_tokens"]) / 1e6
        assert f"cost {cost:.4f}" in capsys.readouterr().out
        requests = len(model.seen)
        run(model)
        assert "up to date" in capsys.readouterr().out
        run(model, "--overwrite", "--max-rounds=5")
        assert len(model.seen) == requests, "another recipe with the same prompts costs nothing"


def babble(user: str) -> Any:
    """Good content in bad form, by the prompt's hash; a prompt that names the fault gets better replies for half.

    None is empty: an endpoint that answers nothing has failed, see test_completions.
    """
    good, digest = json.dumps(sense(user)), hashlib.sha256(user.encode()).digest()
    if "could not be used" in user and digest[1] % 2:
        return good
    forms = [
        good,
        f"```json\n{good}\n```",
        f"Well, then:\n{good}",
        good[: len(good) // 2] + "<cut>",
        good[: len(good) // 2],
        "[1, 2]",
        "No.",
    ]
    return forms[digest[0] % len(forms)]


def test_unusable_replies_are_dropped_and_reported(run: Run) -> None:
    with LanguageModel(babble).running() as model:
        output = run(model)
        counts, dropped = read_manifest(output)["counts"], letters(output)
        assert counts["examples asked for"] == 36 == counts["examples made"] + counts["examples dropped"]
        assert counts["examples dropped"] > 3
        assert counts["examples made"] == len(read_examples(output)) > 3
        assert counts["dropped by reason"] == dict(Counter(d["reason"] for d in dropped))
        assert all(d["dropped"] for d in dropped)
        assert counts["questions"] == sum(
            counts.get(f"questions {what}", 0) for what in ("kept", "dropped", "of examples not made")
        )
        assert {"example: unusable reply", "question: no usable answer, it was cut short"} <= set(
            counts["dropped by reason"]
        )
        assert all(
            d["source"].endswith("corpus.jsonl") and 1 <= d["line"] <= NUM_DOCUMENTS and d["detail"] and d["snippet"]
            for d in dropped
        )
        assert set(model.paid.values()) == {1}


@pytest.mark.slow
def test_one_chunk_that_breaks_the_endpoint_fails_alone_and_can_be_tried_again(
    run: Run, clean: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]
    poison = tiny.documents()[3]["text"]

    def fault(user: str, before: int) -> str:
        return "500" if broken[0] and poison in user and ("Write demanding" in user or "\nPARAPHRASE" in user) else ""

    with LanguageModel(fault=fault).running() as model:
        output = run(model, "--tries=2")
        failed = [d for d in letters(output) if not d["dropped"]]
        assert [(d["line"], d["reason"]) for d in failed] == [(4, "example: request failed")] * 2
        assert read_manifest(output)["counts"]["examples failed"] == 2
        assert len(read_examples(output)) == 34
        assert "--retry-failed" in caplog.text
        with pytest.raises(InputError, match="2 dead letters, --max-failures allows 1"):
            run(model, "--tries=2", "--max-failures=1", output="strict")
        broken[0], before = False, len(model.seen)
        run(model)
        assert "up to date" in capsys.readouterr().out
        run(model, "--retry-failed")
        assert same(output, clean)
        assert 0 < len(model.seen) - before < 15


@pytest.mark.slow
def test_an_outage_ends_the_run_and_the_next_one_pays_the_rest(run: Run, clean: Path, tmp_path: Path) -> None:
    with LanguageModel().running() as model:
        model.fault = lambda user, before: "500" if len(model.paid) > 60 else ""
        with pytest.raises(InputError, match=r"failed 10 requests in a row.* run the same command again"):
            run(model, "--tries=1")
        assert not (tmp_path / "examples" / "manifest.json").exists()
        spent = json.loads((tmp_path / "examples" / "spending.json").read_text())
        assert spent["all replies in the cache"]["replies"] == sum(model.paid.values()) > 60
        model.fault = lambda user, before: ""
        assert same(run(model), clean)
        assert set(model.paid.values()) == {1}


@pytest.mark.timeout(1500)  # four times Beam's start, on whatever machine
@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.release)])
def test_killed_anywhere_and_run_again_it_ends_in_the_same_artefact(
    clean: Path, corpus: Path, tmp_path: Path, kills: int
) -> None:
    concurrency, rng = 4, random.Random(7)
    with LanguageModel(fault=faults, latency_seconds=0.03).running() as model:
        given = command(
            corpus,
            tmp_path / "examples",
            model,
            "--model-name=tiny",
            f"--concurrency={concurrency}",
            "--num-shards=4",
            "--num-workers=2",
        )
        arguments = [sys.executable, "-m", "pipelines.synthesize", *given, "--retry-seconds=0.01"]
        for _ in range(kills):
            # To read the corpus takes as long as the machine likes: what is counted until the kill are requests, not
            # seconds.
            goal = len(model.seen) + rng.randint(5, 50)
            process = subprocess.Popen(
                arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            while len(model.seen) < goal and process.poll() is None:
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "killed before its end"
            assert not (tmp_path / "examples" / "manifest.json").exists()
        assert main([*given, "--retry-seconds=0.01"]) == 0
        again = sum(count - 1 for count in model.paid.values())
        assert again <= kills * concurrency, (
            "what was under way at a kill had not arrived; all that had arrived is not paid again"
        )
        assert same(tmp_path / "examples", clean)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_jobs_at_once_on_several_processes(clean: Path, corpus: Path, tmp_path: Path) -> None:
    with LanguageModel(latency_seconds=0.02).running() as model:
        given = command(corpus, tmp_path / "examples", model, "--model-name=tiny", "--num-workers=2")
        arguments = [sys.executable, "-m", "pipelines.synthesize", *given]
        jobs = [
            subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)
        ]
        errors = [job.communicate()[1] for job in jobs]
        assert sorted(job.returncode for job in jobs) in (
            [0, 2],
            [0, 0],
        )  # the second may begin when the first has ended
        assert all("is writing there" in text for job, text in zip(jobs, errors, strict=True) if job.returncode)
        assert set(model.paid.values()) == {1}
        assert same(tmp_path / "examples", clean)
