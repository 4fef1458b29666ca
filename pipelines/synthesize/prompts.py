"""Prompts of the synthesis as files, with the hash that is their version, and requests made from them."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from clara.errors import InputError
from clara.storage.manifest import hash_of

VERSION = 1
"""Of the prompts that are shipped; raised with every change of one."""

_FIELDS = {
    "simple": {"title", "text", "max_questions"},
    "complex": {"title", "text", "max_questions"},
    "answer": {"title", "text", "question"},
    "verify": {"title", "text", "question", "answer"},
    "cover_simple": {"title", "text", "pairs", "rejected"},
    "cover_complex": {"title", "text", "pairs", "rejected"},
    "paraphrase": {"title", "text"},
    "verify_paraphrase": {"title", "text", "paraphrase"},
    "again": {"attempt", "reason"},
}
NAMES = tuple(_FIELDS)
_SEPARATOR = "\n---\n"


@dataclass(frozen=True)
class Request:
    """One prompt for the model.

    Attributes:
        name: the template's.
        system: the system message; may be empty.
        user: the rest.
        attempt: which try at a usable reply it is, from 1.
    """

    name: str
    system: str
    user: str
    attempt: int = 1

    @property
    def key(self) -> str:
        """Hash of what the model reads."""
        return hash_of([self.system, self.user])


@dataclass(frozen=True)
class Templates:
    """The files' content by name."""

    files: dict[str, str]

    @property
    def version(self) -> dict[str, object]:
        """The prompts in a recipe: the version of shipped prompts (0 for a user's own), and each file's sha256."""
        own = self.files == _shipped()
        hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in sorted(self.files.items())}
        return {"version": VERSION if own else 0, "sha256": hashes}

    def request(self, name: str, **values: str) -> Request:
        """A request of one template. Values are inserted as they are: placeholders inside a text stay untouched."""
        system, user = _parts(self.files[name])
        return Request(name, Template(system).substitute(values).strip(), Template(user).substitute(values).strip())

    def again(self, request: Request, reason: str) -> Request:
        """The request once more, with what was wrong with the reply."""
        note = Template(_parts(self.files["again"])[1]).substitute(attempt=str(request.attempt), reason=reason).strip()
        return Request(request.name, request.system, f"{request.user}\n\n{note}", request.attempt + 1)

    def num_characters(self, name: str) -> int:
        """Length of a template."""
        return len(self.files[name])


def _parts(text: str) -> tuple[str, str]:
    system, _, user = f"\n{text}".partition(_SEPARATOR)
    return system, user


def _shipped() -> dict[str, str]:
    folder = resources.files("pipelines.synthesize") / "templates"
    return {name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in NAMES}


def load_templates(folder: str = "") -> Templates:
    """The prompts that are shipped, or those of a folder with files of the same names.

    Raises:
        InputError: a file is missing, is not UTF-8, has no line `---` between system and user part, or other
            placeholders than it should.
    """
    if not folder:
        return Templates(_shipped())
    files = {}
    for name, fields in _FIELDS.items():
        path = Path(folder) / f"{name}.md"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--prompts {path}: cannot be read ({error}); the folder needs {', '.join(f'{n}.md' for n in NAMES)} "
                "in UTF-8"
            ) from error
        if _SEPARATOR not in f"\n{text}":
            raise InputError(f"--prompts {path}: no line '---' between what the system and what the user says; add it")
        template = Template(text)
        found = set(template.get_identifiers())
        if not template.is_valid() or found != fields:
            raise InputError(
                f"--prompts {path}: placeholders {', '.join(sorted(found)) or 'none'}, expected "
                f"${', $'.join(sorted(fields))}; "
                "write $$ where a dollar is meant"
            )
        files[name] = text
    return Templates(files)
