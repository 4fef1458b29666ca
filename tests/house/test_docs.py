"""The documentation: it builds, its links resolve, its commands are accepted by their programs, and its names exist."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clara.config.load import fields
from infra import config_page
from tests.helpers.command_lines import commands_in, parse

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "infra/README.md",
    *(ROOT / "infra" / name / "README.md" for name in ("ray", "spark", "dataflow", "start")),
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert (site / "infra/results/evidence/notes.html").is_file()


def test_no_page_loads_anything_from_the_network(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\bsrc=\"?(?:https?:)?//|<link[^>]*\bhref=\"?(?:https?:)?//")
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


# --- text ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_two_entry_pages_are_short(name: str) -> None:
    assert len((ROOT / name).read_bytes()) <= 8192


def test_the_figures_of_the_readme_are_those_of_the_linked_pages() -> None:
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    assert len(lines) >= 5
    for line in lines:
        page, figures = re.findall(r"\((docs/[^)]+)\)", line)[0], re.findall(r"\d\.\d+ \[[^]]+\]", line)
        text = (ROOT / page).read_text(encoding="utf-8")
        assert figures
        assert [figure for figure in figures if figure not in text] == [], page


def test_the_layers_are_those_of_the_import_contracts() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            layers = " → ".join(layer.replace(" | ", ", ") for layer in contract["layers"])
            assert f"| {contract['name']} | {layers} |" in text


def names_in(file: Path) -> set[str]:
    """Names of functions, classes and methods (`Class.method`), or, of another kind of file, its words."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return set(re.findall(r"\w+", text))
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
    return names


def invariants() -> list[tuple[str, str]]:
    rows = (ROOT / "docs/invariants.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| [^|]+ \| `([^`]+)` \| `([^`]+)` \|$", rows, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\| (?!invariant)", rows, re.MULTILINE))
    return found


def test_every_invariant_names_code_and_test_that_exist() -> None:
    missing = []
    for row in invariants():
        for reference in row:
            file, _, name = reference.partition(":")
            if not (ROOT / file).is_file() or name not in names_in(ROOT / file):
                missing.append(reference)
    assert len(invariants()) > 40
    assert missing == []


def test_files_that_pages_name_exist() -> None:
    """A path in back quotes that begins with one of the repository's folders."""
    path = re.compile(r"`((?:clara|pipelines|training|infra|tests|benchmarks|docs)/[\w./-]*)`")
    for page in PAGES:
        for name in path.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{name_of(page)}: {name}"


def test_the_configuration_page_is_generated_from_the_code() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == config_page.reference()


def test_settings_that_pages_name_exist() -> None:
    """A dotted key in back quotes that begins with a section of the configuration."""
    known = {key for key, _ in fields()}
    sections = {key.rpartition(".")[0] for key in known} - {""}
    key = re.compile(rf"`((?:{'|'.join(sorted(sections))})\.[\w.]+)(?: ?=[^`]*)?`")
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):  # which names keys that are gone
        missing = set(key.findall(page.read_text(encoding="utf-8"))) - known
        missing = {name for name in missing if name.rpartition(".")[0] not in known - sections}  # an entry of a table
        assert not missing, (name_of(page), missing)


# --- commands ---


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_accepted_by_their_programs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands_in(page.read_text(encoding="utf-8")):
        if words[0] == "make":
            done = subprocess.run(["make", "--dry-run", *words[1:]], capture_output=True, text=True, check=False)
            assert done.returncode == 0, (words, done.stderr)
        else:
            try:
                parse(words, monkeypatch)
            except (SystemExit, Exception) as error:
                pytest.fail(f"{shlex.join(words)}: {error!r}")


def test_the_commands_of_the_readme_are_found() -> None:
    found = list(commands_in((ROOT / "README.md").read_text(encoding="utf-8")))
    assert [words[0] for words in found[:2]] == ["make", "make"]
    assert ["python", "training/joint.py"] in [words[:2] for words in found]
    assert len(found) >= 11
