"""The page about a MEMORY says what its manifest and records say, and leaves the artefact as it is."""

import json
import re
from pathlib import Path

import pytest

from clara.errors import InputError
from clara.memory.store import MemoryStore
from pipelines.build_memory import summary as memory_summary
from pipelines.build_memory.command import main
from pipelines.build_memory.summary import page, summarise
from pipelines.job import page as pages
from pipelines.job.page import NAME as PAGE
from pipelines.job.page import Chart, Section, bar_chart, line_chart
from tests.helpers import tiny
from tests.helpers.page_parser import Page


@pytest.fixture(scope="module")
def memory(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summary")
    rows = [
        *tiny.documents(),
        {"id": "long", "text": "One sentence of the river. " * 90},
        {"id": "<b>&", "title": "<i>", "text": "Kept."},
    ]
    (folder / "a<b>.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + "broken\n" + '{"text": ""}\n' * 2
    )
    given = [
        "--input",
        str(folder / "*.jsonl"),
        "--output",
        str(folder / "memory"),
        "--checkpoint",
        str(tiny_checkpoint),
    ]
    assert main([*given, "--dtype=float32", "--num-shards=5", "--num-workers=1"]) == 0
    return folder / "memory"


def test_the_page_says_what_the_artefact_says(memory: Path) -> None:
    store = MemoryStore.open(memory, verify=True)
    records = store.records(store.row_ids)
    text = (memory / PAGE).read_text()
    rows = Page(text).rows
    assert rows["rows"] == str(len(store))
    assert rows["hash of the manifest"] == store.hash
    assert rows["fingerprint"] == store.fingerprint
    assert (rows["failed: not JSON"], rows["failed: empty text"]) == ("1", "2")
    assert rows["tokens"] == f"{sum(record.num_tokens for record in records):,}"
    assert rows["tokens a chunk, most"] == str(max(record.num_tokens for record in records))
    assert rows["chunks cut inside a sentence or title"] == str(sum(record.truncated for record in records))
    assert rows["documents split into several chunks"] == "1"
    assert rows["shards and overlays"] == "5"
    assert float(rows["documents a second, start to end"].replace(",", "")) > 0
    assert sum(int(count.replace(",", "")) for count in re.findall(r"tokens: ([\d,]+)</title>", text)) == len(records)
    assert "a<b>.jsonl" not in text  # it is escaped
    assert "a&lt;b&gt;.jsonl" in text


def test_it_is_no_part_of_the_artefact(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = MemoryStore.open(memory).hash
    (memory / PAGE).unlink()
    assert MemoryStore.open(memory, verify=True).hash == before
    assert memory_summary.main(["--memory", str(memory)]) == 0
    assert capsys.readouterr().out.strip() == str(memory / PAGE)
    # A run's seconds are known to the run alone.
    assert "documents a second" not in Page((memory / PAGE).read_text()).rows
    with pytest.raises(InputError, match="no finished MEMORY"):
        memory_summary.main(["--memory", str(memory.parent)])


def test_rows_by_time_add_up(memory: Path) -> None:
    summary = summarise(str(memory))
    assert summary.finished[0][0] == 0
    assert summary.finished[-1][1] == sum(summary.lengths)
    assert [y for _, y in summary.finished] == sorted(y for _, y in summary.finished)
    Page(page(summary))


def test_charts_of_few_values() -> None:
    def drawn(chart: Chart) -> str:
        return pages.page("what", [Section("", [chart])])

    for chart in (
        bar_chart([0], ["a"], "what"),
        bar_chart([1, 5, 0.5], ["a", "<", "c"], "what"),
        line_chart([(0, 1), (4, 9)], "what", "s"),
    ):
        Page(drawn(chart))
    heights = [
        float(h) for h in re.findall(r'height="([\d.]+)" class="bar"', drawn(bar_chart([1, 2, 4], list("abc"), "")))
    ]
    assert heights[0] * 4 == pytest.approx(heights[1] * 2, abs=0.3)
    assert heights[2] == pytest.approx(heights[1] * 2, abs=0.2)


def test_an_unreachable_tracking_server_is_reported_before_any_work(
    corpus_file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    given = ["--input", str(corpus_file), "--output", str(tmp_path / "memory"), "--checkpoint", str(tiny_checkpoint)]
    with pytest.raises(InputError, match=r"--tracking-uri nothing://here: does not answer"):
        main([*given, "--tracking-uri=nothing://here"])
    assert not (tmp_path / "memory").exists()


@pytest.mark.slow
def test_a_build_is_logged_with_its_page(corpus_file: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    url = f"sqlite:///{tmp_path}/mlflow.db"
    given = ["--input", str(corpus_file), "--output", str(tmp_path / "memory"), "--checkpoint", str(tiny_checkpoint)]
    assert main([*given, "--num-workers=1", "--tracking-uri", url, "--tracking-experiment=books"]) == 0
    client = MlflowClient(tracking_uri=url)
    (run,) = client.search_runs([client.get_experiment_by_name("books").experiment_id])
    store = MemoryStore.open(tmp_path / "memory")
    assert (run.data.tags["memory_hash"], run.data.tags["fingerprint"]) == (store.hash, store.fingerprint)
    assert (run.data.metrics["rows"], run.data.metrics["dead_letters"], run.info.status) == (40, 0, "FINISHED")
    assert run.data.params["max_tokens"] == "96"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [PAGE]
    assert (tmp_path / "mlartifacts").is_dir()
