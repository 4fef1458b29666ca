"""The page about synthesised EXAMPLES repeats the artefact's figures, escapes text, changes nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clara.data.examples import each_example, read_examples
from clara.errors import InputError
from clara.storage.manifest import manifest_hash, read_manifest
from pipelines import build_examples
from pipelines.job.page import NAME as PAGE
from pipelines.synthesize import summary
from pipelines.synthesize.command import main
from tests.helpers import tiny, towns
from tests.helpers.artefacts import verify
from tests.helpers.language_model import LanguageModel, sense
from tests.helpers.page_parser import Page

EVIL = "<script>alert(1)</script> & so it goes. A second <b>sentence</b> follows."
PRICES = ["--price-prompt=2", "--price-reply=10"]


def reply(user: str) -> Any:
    """Sense, but the paraphrase of the third document's text is found to be wrong."""
    return {"verdict": "no"} if tiny.documents()[2]["text"] in user and "\nPARAPHRASE: " in user else sense(user)


class Made(NamedTuple):
    given: list[str]
    examples: Path
    num_faults: int
    first: str  # the page of the first run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Made, LanguageModel]]:
    """EXAMPLES of eight documents; some first tries failed. The endpoint stays there."""
    folder = tmp_path_factory.mktemp("summary")
    rows = [*tiny.documents()[:7], {"id": "evil", "title": "<i>Title", "text": EVIL}]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n", encoding="utf-8")
    with LanguageModel(
        reply, lambda user, before: "429" if len(user) % 7 == 0 and not before else ""
    ).running() as model:
        given = [
            "--input",
            str(folder / "c.jsonl"),
            "--output",
            str(folder / "examples"),
            "--model",
            model.url,
            "--model-name=tiny",
        ]
        given += ["--retry-seconds=0.01", "--num-workers=1", *PRICES]
        assert main(given) == 0
        num_faults = Counter(s.done for s in model.seen)["429"]
        yield (
            Made(given, folder / "examples", num_faults, (folder / "examples" / PAGE).read_text(encoding="utf-8")),
            model,
        )


def test_the_page_says_what_the_artefact_says(made: tuple[Made, LanguageModel]) -> None:
    found, (counts, page) = made[0], (read_manifest(made[0].examples)["counts"], Page(made[0].first))
    examples = read_examples(found.examples)
    assert page.rows["hash of the manifest"] == manifest_hash(found.examples)
    pairs = sum(len(e.questions) for e in examples)
    kinds = {row[0]: row[1:] for row in page.tables if row[0] in ("simple", "complex", "paraphrase") and len(row) == 6}
    assert list(kinds) == ["simple", "complex", "paraphrase"]
    assert kinds["paraphrase"] == ["8", "7", "1", "", ""]
    assert [row[:3] for row in (kinds["simple"], kinds["complex"])] == [["8", "8", "0"]] * 2
    assert int(kinds["simple"][3]) + int(kinds["complex"][3]) == pairs == counts["questions kept"]
    assert int(kinds["simple"][3]) > int(kinds["complex"][3])  # asks for all of the sentences in the end
    assert float(kinds["simple"][4]) == pytest.approx(int(kinds["simple"][3]) / 8, abs=0.01)
    assert (page.rows["failed: not JSON"], page.rows["dropped: example: paraphrase not verified"]) == ("1", "1")
    assert page.rows["supplementary rounds"] == str(counts["supplementary rounds"]) == "8"
    assert page.rows["an example that does not cover its document is"] == "dropped"


def test_it_says_what_the_endpoint_was_paid(made: tuple[Made, LanguageModel]) -> None:
    found, rows = made[0], Page(made[0].first).rows
    spent = json.loads((found.examples / "spending.json").read_text())["this run"]
    assert rows["retries: 429"] == str(found.num_faults)
    assert found.num_faults > 2
    assert (rows["sent"], rows["paid"], rows["cached"]) == (str(spent["sent"]), str(spent["paid"]), "0")
    assert rows["cost"] == f"{(2 * spent['prompt_tokens'] + 10 * spent['reply_tokens']) / 1e6:.4f}"
    assert rows["prompt tokens of these examples"] == rows["prompt tokens"] == f"{spent['prompt_tokens']:,}"
    requests = float(rows["requests per second"].replace(",", "")) * float(rows["seconds"].replace(",", ""))
    assert requests == pytest.approx(spent["paid"], rel=0.05)


def test_some_of_each_kind_and_of_what_was_dropped_are_shown_and_nothing_is_taken_for_html(
    made: tuple[Made, LanguageModel],
) -> None:
    text = made[0].first
    examples = read_examples(made[0].examples)
    page = Page(text)  # every tag is one of the page's own, and closed
    assert "<script>" not in text
    assert "<b>sentence" not in text
    assert text.count("<blockquote>") == 9
    shown = [
        list(pair) for e in examples for pair in zip(e.questions, e.answers, strict=False) if list(pair) in page.tables
    ]
    assert len(shown) >= 6
    (letter,) = [row for row in page.tables if row[0] == "example: paraphrase not verified" and len(row) == 3]
    assert letter[1].startswith("paraphrase: ")
    assert letter[2] == tiny.documents()[2]["text"][:200]
    evil = summary.summarise(str(made[0].examples))
    for kind in evil.kinds.values():
        kind.shown[:] = [e for e in examples if e.document_id == "evil"]
    markup = summary.page(evil)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so it goes." in markup
    assert "<b>&lt;i&gt;Title</b>" in markup
    assert "<script>" not in markup
    Page(markup)


def test_replies_from_the_cache_are_counted(made: tuple[Made, LanguageModel]) -> None:
    found, model = made
    given, requests = (
        [
            *found.given,
            "--overwrite",
            "--kinds=simple",
            "--output",
            f"{found.examples}-again",
            f"--cache={found.examples}",
        ],
        len(model.seen),
    )
    assert main(given) == 0
    assert len(model.seen) == requests
    rows = Page(Path(f"{found.examples}-again", PAGE).read_text(encoding="utf-8")).rows
    assert (rows["sent"], rows["paid"]) == ("0", "0")
    assert rows["cached"] == rows["requests"] != "0"
    assert rows["cost"] != "0.0000", "of all replies in the cache, which comes last"


def test_it_is_no_part_of_the_artefact_and_can_be_written_later(
    made: tuple[Made, LanguageModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = made[0].examples
    before, page = manifest_hash(examples), examples / PAGE
    page.unlink()
    verify(examples, "EXAMPLES")
    assert manifest_hash(examples) == before
    assert summary.main(["--examples", str(examples), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == {"simple": 8, "complex": 8, "paraphrase": 7}
    assert not page.exists()
    assert summary.main(["--examples", str(examples)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    rows = Page(page.read_text(encoding="utf-8")).rows
    assert "seconds" not in rows  # which the run alone knows
    assert rows["cost"] == "prices were not given"
    corpus = towns.write(tmp_path / "corpus.jsonl")
    assert build_examples.main(["--input", str(corpus), "--output", str(tmp_path / "others")]) == 0
    with pytest.raises(InputError, match=r"EXAMPLES of build_examples; give some that pipelines\.synthesize made"):
        summary.main(["--examples", str(tmp_path / "others")])
    assert list(each_example(tmp_path / "others")) == read_examples(tmp_path / "others")


def test_an_unreachable_tracking_server_is_reported_before_any_request(
    made: tuple[Made, LanguageModel], tmp_path: Path
) -> None:
    requests = len(made[1].seen)
    with pytest.raises(InputError, match=r"--tracking-uri nothing://here: does not answer"):
        main([*made[0].given, "--output", str(tmp_path / "out"), "--tracking-uri=nothing://here"])
    assert not (tmp_path / "out").exists()
    assert len(made[1].seen) == requests


@pytest.mark.slow
def test_a_run_is_logged_with_its_page(made: tuple[Made, LanguageModel], tmp_path: Path) -> None:
    from mlflow import MlflowClient

    url, examples = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "examples"
    assert main([*made[0].given, "--output", str(examples), "--tracking-uri", url, "--tracking-experiment=books"]) == 0
    client = MlflowClient(tracking_uri=url)
    (run,) = client.search_runs([client.get_experiment_by_name("books").experiment_id])
    assert (run.data.tags["artefact"], run.data.tags["examples_hash"]) == ("EXAMPLES", manifest_hash(examples))
    metrics, spent = run.data.metrics, json.loads((examples / "spending.json").read_text())["this run"]
    assert (metrics["examples"], metrics["simple.made"], metrics["paraphrase.made"], metrics["dead_letters"]) == (
        23,
        8,
        7,
        1,
    )
    assert (metrics["this_run.sent"], metrics["this_run.retries"]) == (spent["sent"], sum(spent["retries"].values()))
    assert metrics["seconds"] > 0
    assert run.data.params["settings.coverage"] == "required"
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == [PAGE]
    assert run.info.status == "FINISHED"
