"""Container images, as far as they can be checked without building one: locks, sources, users, digests, audits."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clara.errors import InputError
from infra.images import audit, pin
from infra.images.locks import OF_CUDA, STAGES, versions

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if path.name != "tools.txt")
INSTRUCTIONS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)", DOCKERFILE, re.MULTILINE)


def text_of(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


# --- locks ---


def test_each_stage_has_a_lock_for_gpus_and_one_for_cpus() -> None:
    assert sorted(path.stem for path in LOCKS) == sorted([*STAGES, *(f"{stage}-cpu" for stage in STAGES)])


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_holds_names_versions_and_hashes_and_nothing_else(lock: Path) -> None:
    entries = re.sub(r" \\\n +", " ", lock.read_text(encoding="utf-8")).splitlines()
    line = re.compile(r"[a-z0-9][a-z0-9._-]*(\[[\w,-]+\])?==\d[\w.!]*( ; [^#@]+?)?( --hash=sha256:[0-9a-f]{64})+")
    assert entries[0].startswith("# Stage ")
    assert [entry for entry in entries[1:] if not line.fullmatch(entry)] == []
    assert "+" not in "".join(versions(lock.read_text(encoding="utf-8")).values())  # a version that PyPI has not


@pytest.mark.parametrize("stage", STAGES)
def test_a_lock_has_the_versions_of_pyproject(stage: str) -> None:
    """If it fails after a change of pyproject.toml: `make lock`."""
    wanted = [*PROJECT["dependencies"]]
    for extra in STAGES[stage]:
        wanted += PROJECT["optional-dependencies"][extra]
    found = versions(text_of(stage))
    for requirement in map(Requirement, wanted):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_locked_package_needs_is_locked(stage: str) -> None:
    """By the metadata of those that are installed here, for Linux and Python 3.11."""
    found, checked = versions(text_of(stage)), 0
    environment = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "extra": ""}
    environment |= {"platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    for name, version in found.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != version:
            continue
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                needed = canonicalize_name(requirement.name)
                assert needed in found or OF_CUDA.fullmatch(needed), (name, str(requirement))
                assert needed not in found or requirement.specifier.contains(found[needed]), (name, str(requirement))
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("stage", STAGES)
def test_the_lock_for_cpus_lacks_torch_and_cuda_alone(stage: str) -> None:
    whole, cpu = versions(text_of(stage)), versions(text_of(f"{stage}-cpu"))
    left_out = whole.keys() - cpu.keys()
    assert cpu == {name: version for name, version in whole.items() if name not in left_out}
    assert {"torch", "triton"} <= left_out == {name for name in whole if OF_CUDA.fullmatch(name)}


# --- the Dockerfile ---


def test_each_source_that_is_copied_exists() -> None:
    sources = [words.split()[:-1] for name, words in INSTRUCTIONS if name == "COPY" and not words.startswith("--from")]
    assert len(sources) >= 6
    assert [source for words in sources for source in words if not (ROOT / source).exists()] == []


def test_no_image_runs_as_root() -> None:
    final = {}
    for name, words in INSTRUCTIONS:
        if name == "FROM":
            stage = words.split()[-1]
        if name == "USER":
            final[stage] = words
    assert final == dict.fromkeys(("train", "beam", "dataflow"), "10001")
    assert "useradd --uid 10001 --create-home clara" in DOCKERFILE


def test_images_from_elsewhere_have_a_tag_and_a_digest_or_its_empty_place() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    outside = [words for name, words in INSTRUCTIONS if name == "FROM" and words.split()[0] not in stages]
    found = list(pin.IMAGE.finditer(DOCKERFILE))
    assert len(found) == len(outside) == 3
    for image in found:
        assert image["tag"] != "latest"
        (value,) = re.findall(rf"^ARG {image['argument']}=(.*)$", DOCKERFILE, re.MULTILINE)
        assert value == "" or pin.DIGEST.fullmatch(value.removeprefix("@"))


def test_everything_is_installed_from_locks_with_hashes() -> None:
    commands = [
        part.strip() for _, words in INSTRUCTIONS for part in re.split(r"&&|;|\n", words) if "pip install" in part
    ]
    assert len(commands) == 5
    for command in commands:
        locked, own = "--require-hashes" in command, command.endswith("--no-build-isolation .")
        assert "--no-deps" in command
        assert locked or own or command.startswith('then pip install --no-deps --index-url "$TORCH_INDEX"')


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint") or str(Path(sys.executable).parent.parent / "tools/bin/hadolint")
    if not Path(program).is_file():
        pytest.skip("hadolint is not here: make tools")
    done = subprocess.run([program, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# --- digests ---

DIGEST = f"sha256:{'5a' * 32}"


class Registry(BaseHTTPRequestHandler):
    """A registry with one image, which wants a token."""

    digest = DIGEST

    def do_HEAD(self) -> None:
        if self.headers.get("Authorization") != "Bearer anonymous":
            self.send_response(401)
            realm = f"http://127.0.0.1:{self.server.server_port}/token"
            scope = "repository:library/python:pull"
            self.send_header("WWW-Authenticate", f'Bearer realm="{realm}",service="registry",scope="{scope}"')
        elif self.path != "/v2/library/python/manifests/3.11-slim":
            self.send_response(404)
        else:
            assert "application/vnd.oci.image.index.v1+json" in self.headers["Accept"]
            self.send_response(200)
            self.send_header("Docker-Content-Digest", self.digest)
        self.end_headers()

    def do_GET(self) -> None:
        assert self.path == "/token?service=registry&scope=repository%3Alibrary%2Fpython%3Apull"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"token": "anonymous"}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_digest_is_looked_up_and_filled_in(registry: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    image = f"FROM {registry}/library/python:3.11-slim${{PYTHON_DIGEST}} AS base\n"
    file.write_text(f"ARG PYTHON_DIGEST=\n{image}", encoding="utf-8")
    for _ in range(2):
        assert pin.main(["--dockerfile", str(file)]) == 0
        assert file.read_text(encoding="utf-8") == f"ARG PYTHON_DIGEST=@{DIGEST}\n{image}"


def test_no_digest_is_invented(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"python:3\.12: http://127.* gives no digest \(.*404"):
        pin.digest_of(f"{registry}/library/python", "3.12")
    monkeypatch.setattr(Registry, "digest", "sha256:abc")
    with pytest.raises(InputError, match="says digest 'sha256:abc', expected sha256 and 64 hex digits"):
        pin.digest_of(f"{registry}/library/python", "3.11-slim")
    monkeypatch.setattr(Registry, "digest", DIGEST)
    with pytest.raises(InputError, match="ARG X_DIGEST is there 0 times"):
        pin.pinned(f"FROM {registry}/library/python:3.11-slim${{X_DIGEST}} AS base\n")


@pytest.mark.parametrize(
    ("name", "address", "repository"),
    [
        ("python", "https://registry-1.docker.io", "library/python"),
        ("apache/beam_python3.11_sdk", "https://registry-1.docker.io", "apache/beam_python3.11_sdk"),
        ("gcr.io/a/b", "https://gcr.io", "a/b"),
        ("localhost:5000/a", "http://localhost:5000", "a"),
    ],
)
def test_names_are_read_as_docker_reads_them(name: str, address: str, repository: str) -> None:
    assert pin.place(name) == (address, repository)


# --- audits ---


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ({"a": [], "b": []}, audit.NONE_KNOWN, "lock.txt: 2 packages, no known vulnerability"),
        (
            {"a": [], "b": [{"id": "CVE-1", "fix_versions": ["2.1"]}]},
            audit.KNOWN,
            "lock.txt: b 2.0: CVE-1, fixed in 2.1",
        ),
        ({"a": []}, audit.NOT_RUN, "lock.txt: not run: 1 of 2 packages not asked about: out of reach"),
        (None, audit.NOT_RUN, "lock.txt: not run: 2 of 2 packages not asked about: out of reach"),
    ],
)
def test_an_audit_that_could_not_ask_is_no_clean_one(
    output: dict[str, list[dict[str, object]]] | None, status: int, said: str, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1.0 \\\n    --hash=sha256:00\nb[c]==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:00\n")
    listed = [{"name": name, "version": "1", "vulns": vulns} for name, vulns in (output or {}).items()]
    skipped = [{"name": "b", "skip_reason": "not found"}] if output and "b" not in output else []
    printed = json.dumps({"dependencies": [*listed, *skipped]}) if output is not None else ""
    assert audit.answer(lock, printed, "out of reach\n") == (status, [said])
