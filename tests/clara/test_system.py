"""`clara.open`: what it answers, streams and searches, what it refuses, what importing it costs, and its examples."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import clara
from clara.errors import InputError
from clara.system import System
from tests.helpers.evaluation_world import World

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Who is the mayor of Arlen on the Tamo?", "What does the market of Jorvik sell?", "When was it built?"]


@pytest.fixture(scope="module")
def system(evaluation_artefacts: World) -> System:
    world = evaluation_artefacts
    return clara.open(checkpoint=str(world.trained), memory=world.memory, index=world.index)


def test_an_answer_has_text_and_passages_with_the_reason(system: System) -> None:
    answer = system.ask(QUESTIONS[0], passages=3)
    (expected,) = system.retriever.ask(QUESTIONS[:1], num_selected=3)
    assert answer == expected
    assert answer.text == expected.answer != ""
    assert len(answer.passages) == 3
    for passage in answer.passages:
        assert passage.title
        assert passage.text
        tau = system.retriever.model.settings.fusion.temperature
        assert passage.why == {"memory": pytest.approx(passage.score / tau)}


def test_a_list_is_answered_as_one_by_one(system: System) -> None:
    asked = [*QUESTIONS, *(f"What is {n}?" for n in range(8))]
    alone = [system.ask(question, max_new_tokens=9) for question in asked]
    together = system.ask(asked, max_new_tokens=9)
    assert [a.text for a in together] == [a.text for a in alone]
    assert [[p.row_id for p in a.passages] for a in together] == [[p.row_id for p in a.passages] for a in alone]
    assert system.ask([]) == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_stream_is_the_answer_in_pieces(system: System, question: str) -> None:
    pieces = list(system.stream(question, passages=2, max_new_tokens=12))
    assert "".join(pieces) == system.ask(question, passages=2, max_new_tokens=12).text
    assert all(pieces)


def test_search_finds_what_answers_are_read_from(system: System) -> None:
    found = system.search(QUESTIONS, k=4)
    answers = system.ask(QUESTIONS, passages=4, max_new_tokens=1)
    for passages, answer in zip(found, answers, strict=True):
        assert [p.row_id for p in passages] == [p.row_id for p in answer.passages]
    assert system.search([]) == []


def test_a_filter_lets_only_its_documents_and_sources_through(system: System, evaluation_artefacts: World) -> None:
    every = system.search(QUESTIONS, k=80)
    for names in (["doc-03"], ["doc-07", "doc-31", "doc-03"]):
        found = system.only(documents=names).search(QUESTIONS, k=5)
        for own, all_of_them in zip(found, every, strict=True):
            expected = [p for p in all_of_them if p.document_id in names][:5]
            assert [p.row_id for p in own] == [p.row_id for p in expected]
            assert [p.score for p in own] == pytest.approx([p.score for p in expected], abs=1e-5)
            assert own[0].why == pytest.approx(dict(expected[0].why), abs=1e-3)
    source = system.retriever.store.records(system.retriever.store.row_ids[:1])[0].source
    whole = system.only(sources=[source]).search(QUESTIONS, k=7)
    assert [[p.row_id for p in own] for own in whole] == [[p.row_id for p in own[:7]] for own in every]
    chosen = system.only(documents=["doc-03"], sources=[source])
    answer = chosen.ask(QUESTIONS[0], passages=5)
    assert [p.document_id for p in answer.passages] == ["doc-03"] * 2
    assert "".join(chosen.stream(QUESTIONS[0])) == answer.text
    for wrong, message in (
        ({"documents": ["doc-03", "doc-99"]}, "no row of document 'doc-99'"),
        ({"sources": ["doc-03"]}, "no row of source 'doc-03'"),
        ({"documents": []}, "the list of documents is empty"),
        ({"documents": "doc-03"}, "documents is the text 'doc-03'; expected a list"),
    ):
        with pytest.raises(InputError, match=message):
            system.only(**wrong)  # type: ignore[arg-type]


def test_bad_input_is_refused_before_anything_is_computed(system: System) -> None:
    for ask in (system.ask, system.stream):
        with pytest.raises(InputError, match="question 1 is ''"):
            ask("")
        with pytest.raises(InputError, match="num_selected is 0"):
            ask("Who?", passages=0)
        with pytest.raises(InputError, match="max_new_tokens is 0"):
            ask("Who?", max_new_tokens=0)
    with pytest.raises(InputError, match=r"questions is the text 'Who\?'; expected a list"):
        system.search("Who?")
    with pytest.raises(InputError, match="num_selected is 1000000, the MEMORY holds 80 rows"):
        system.search(["Who?"], k=1_000_000)
    with pytest.raises(InputError, match="registered models are resolved by the command clara"):
        clara.open("models:/a@champion", "memory")


def test_importing_it_loads_no_model_library() -> None:
    code = (
        "import sys, time\nbegan = time.process_time()\nimport clara\nspent = time.process_time() - began\n"
        "print(spent, *sorted({m.partition('.')[0] for m in sys.modules} "
        "& {'torch', 'numpy', 'pydantic', 'transformers', 'faiss', 'mlflow', 'ray'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *heavy = done.stdout.split()
    assert float(seconds) < 0.1
    assert heavy == []


def test_the_examples_of_the_page_run(
    evaluation_artefacts: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = evaluation_artefacts
    (tmp_path / "RUN").mkdir()
    for name, folder in (("checkpoint", world.trained), ("memory-v1", world.memory), ("index-v1", world.index)):
        (tmp_path / "RUN" / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    examples = [code for code in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "rag" in code]
    assert len(examples) >= 1
    names: dict[str, object] = {}
    for code in examples:
        exec(compile(code, "docs/serving.md", "exec"), names)
    assert capsys.readouterr().out
