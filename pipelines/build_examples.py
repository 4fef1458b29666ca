"""EXAMPLES for the stage `pretrain`.

From any corpus, without labels:
    python -m pipelines.build_examples --input corpus.jsonl --output DIR --exclude-held-out
From rows with synthetic pairs:
    python -m pipelines.build_examples --input pairs.jsonl --format scp --output DIR

A corpus gives each document two examples. `autoencode`: reproduce the document from its memory. `cloze`: pairs of
a sentence with one span masked and that span: the document's own title, a name of several words, a number, or for want
of those the longest word; besides "What is this text about?" and, where the corpus has a `description`, "What is
TITLE?".

Another article's title is never masked, as this is what `build_questions --format cloze` asks. With --exclude-held-out
no held-out article is an example, and sentences that mention one are cut from the others: no question that evaluation
asks about a held-out article has been read in pretraining.
"""

import argparse
import functools
import hashlib
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clara.config.flags import Command, add_setting
from clara.data.corpus import read_rows
from clara.data.examples import Example, write_examples
from clara.data.fields import FIELDS, Fields
from clara.data.input_files import expand, input_hashes
from clara.data.records import Document, document_id, normalise
from clara.errors import InputError, command_line
from pipelines.corpus.arguments import add_field_arguments, given_fields, refuse_fields
from pipelines.corpus.maskable import spans
from pipelines.corpus.mentions import MASK, Names, is_held_out, plain_title, sentences
from pipelines.corpus.whole import corpus_files, rows_of
from pipelines.job.artefact_job import ArtefactJob
from pipelines.job.locks import Lease

_LOG = logging.getLogger(__name__)
ABOUT = "What is this text about?"
# Published pretraining rows begin like this; the rest up to the line end is the title.
_SCP_TITLE = re.compile(r"^This (?:is )?a document about (?P<title>[^\n]{1,200}?)\.\s*\n\s*(?P<text>.+)$", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """What determines the examples of a corpus.

    Attributes:
        pairs: most pairs in a `cloze` example.
        max_sentence_characters: longer sentences are not asked about.
        held_out_share, salt: which articles are held out, as in `build_questions`; a share of 0 holds none out.
    """

    seed: int = 0
    kinds: tuple[str, ...] = ("autoencode", "cloze")
    pairs: int = 6
    max_sentence_characters: int = 300
    held_out_share: float = 0.0
    salt: str = "held-out"


def cloze_pairs(document: Document, description: str, names: Names, settings: Settings) -> list[tuple[str, str]]:
    """At most `settings.pairs` questions with answers, drawn by seed and document id; each sentence first gives one."""
    rng = random.Random(f"{settings.seed}:{document.id}")
    general = [(ABOUT, document.title)] if document.title else []
    if document.title and description:
        general.append((f"What is {document.title}?", description))
    first, more = [], []
    own = plain_title(document.title)
    for sentence in sentences(document.text):
        if len(sentence) > settings.max_sentence_characters or len(sentence.split()) < 5:
            continue
        choice = spans(sentence, own, names)
        rng.shuffle(choice)
        masked = [(sentence[:start] + MASK + sentence[end:], sentence[start:end]) for start, end in choice]
        first += masked[:1]
        more += masked[1:]
    rng.shuffle(first)
    rng.shuffle(more)
    chosen = [*general, *first, *more][: settings.pairs]
    rng.shuffle(chosen)
    return chosen


def example_id(document: str, kind: str) -> str:
    """The id of a document's example of one kind."""
    return hashlib.sha256(f"{kind}:{document}".encode()).hexdigest()[:16]


def corpus_examples(rows: Sequence[tuple[Document, str]], settings: Settings) -> tuple[list[Example], dict[str, int]]:
    """Examples of documents with their descriptions, and what became of the documents: in, held out, cut, left out."""
    counts: Counter[str] = Counter(documents=len(rows))
    held_out = {d.id for d, _ in rows if is_held_out(d.id, settings.held_out_share, settings.salt)}
    # All held-out names count here, shared ones too: rather one sentence too many cut.
    secret = Names((d for d, _ in rows if d.id in held_out), keep_shared=True)
    names = Names(d for d, _ in rows)
    examples: list[Example] = []
    known: set[str] = set()
    for original, description in rows:
        if original.id in held_out:
            counts["dropped: held out"] += 1
            continue
        whole = sentences(original.text)
        kept = [s for s in whole if not any(True for _ in secret.find(s))]
        counts["sentences cut"] += len(whole) - len(kept)
        if not kept:
            counts["dropped: every sentence mentions a held-out article"] += 1
            continue
        document = (
            original
            if len(kept) == len(whole)
            else Document(original.id, original.title, " ".join(kept), original.source, original.line)
        )
        if any(True for _ in secret.find(description)):
            description = ""
        name = (
            document.id if document.id not in known else f"{document.id}:{document_id(original.title, original.text)}"
        )
        known.add(document.id)
        for kind in settings.kinds:
            pairs = cloze_pairs(document, description, names, settings) if kind == "cloze" else []
            if kind == "cloze" and not pairs:
                counts["no pair found"] += 1
                continue
            questions, answers = tuple(q for q, _ in pairs), tuple(a for _, a in pairs)
            examples.append(
                Example(example_id(name, kind), document.id, document.title, document.text, kind, questions, answers)
            )
    return examples, dict(counts)


def scp_example(row: Mapping[str, Any], source: str, line: int) -> Example:
    """One row of published pretraining data: `data_type` (`qa` or `paraphrase`), `question`, `answers`, `docs` (one).

    Raises:
        InputError: a field is missing or of another form.
    """
    where = f"{source}:{line}"
    kind = row.get("data_type")
    if kind not in ("qa", "paraphrase"):
        raise InputError(f"{where}: data_type {kind!r}; expected 'qa' or 'paraphrase'")
    for field in ("docs", "answers", "question"):
        value = row.get(field, [] if field == "question" else None)
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise InputError(f"{where}: {field} is {value!r:.60}; expected a list of strings")
    if len(row["docs"]) != 1:
        raise InputError(f"{where}: {len(row['docs'])} docs; expected one")
    parts = _SCP_TITLE.match(row["docs"][0].strip())
    title, text = (normalise(parts["title"]), normalise(parts["text"])) if parts else ("", normalise(row["docs"][0]))
    name = document_id(title, text)
    questions = tuple(normalise(q) for q in row.get("question", [])) if kind == "qa" else ()
    answers = tuple(normalise(a) for a in row["answers"])
    try:
        return Example(example_id(name, kind), name, title, text, kind, questions, answers)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def scp_examples(rows: Iterable[tuple[str, int, Mapping[str, Any]]]) -> tuple[list[Example], dict[str, int]]:
    """Examples of published rows; the same document and kind again is left out and counted."""
    found: dict[str, Example] = {}
    repeated = 0
    for source, line, row in rows:
        example = scp_example(row, source, line)
        repeated += example.example_id in found
        found.setdefault(example.example_id, example)
    return list(found.values()), {"rows": len(found) + repeated, "dropped: repeated": repeated}


def read_described(files: Sequence[str], fields: Fields = FIELDS) -> Iterator[tuple[Document, str]]:
    """Documents of files, each content of an id once, with the `description` where there is one.

    Raises:
        InputError: a bad row.
    """
    seen: dict[str, dict[str, Document]] = {}
    for row, document in rows_of(files, fields, ["description"]):
        texts = seen.setdefault(document.id, {})
        content = document_id(document.title, document.text)
        if content not in texts:
            texts[content] = document
            yield document, normalise(str(row.get("description") or ""))
    shared = [list(texts.values()) for texts in seen.values() if len(texts) > 1]
    if shared:
        one, other = shared[0][:2]
        _LOG.warning(
            "%d document ids are shared by different texts, all of which were kept; the first is %r (%s:%d and %s:%d); "
            "give each document its own id",
            len(shared),
            one.id,
            one.source,
            one.line,
            other.source,
            other.line,
        )


def parser() -> Command:
    """The command line's arguments."""
    found = Command("pipelines.build_examples", __doc__)
    found.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="JSONL, Parquet or plain text files, compressed ones too, or quoted globs",
    )
    add_setting(found, "output", metavar="DIR", required=True)
    found.add_argument(
        "--format",
        choices=("corpus", "scp"),
        default="corpus",
        help="corpus: id, title, text; scp: data_type, question, answers, docs (default: corpus)",
    )
    add_field_arguments(found.add_argument_group("format corpus"))
    for name in ("kinds", "pairs", "max_sentence_characters", "exclude_held_out"):
        add_setting(found, f"examples_job.{name}")
    for key in ("cloze.held_out_share", "cloze.salt", "seed"):
        add_setting(found, key)
    found.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    return found


def resolve(options: argparse.Namespace) -> Settings:
    """Settings of the command line.

    Raises:
        InputError: a value is out of its range.
    """
    kinds = tuple(options.kinds)
    if not kinds or set(kinds) - {"autoencode", "cloze"}:
        raise InputError(f"--kinds {','.join(kinds)!r}; expected autoencode, cloze, or both with a comma")
    if options.pairs < 1:
        raise InputError(f"--pairs {options.pairs}; expected at least 1")
    if not 0 <= options.held_out_share < 1:
        raise InputError(f"--held-out-share {options.held_out_share}; expected a share from 0 to under 1")
    share = options.held_out_share if options.exclude_held_out else 0.0
    return Settings(options.seed, kinds, options.pairs, options.max_sentence_characters, share, options.salt)


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    settings, fields = resolve(options), given_fields(options)
    if options.format != "corpus":
        refuse_fields(options, f"--format {options.format} has its own field names")
    files = corpus_files(options.input, fields) if options.format == "corpus" else expand(options.input)
    chosen: dict[str, Any] = asdict(settings) if options.format == "corpus" else {}
    chosen |= {"fields": asdict(fields)} if fields != FIELDS else {}
    asked = {"format": options.format, "settings": chosen}

    @functools.cache
    def recipe() -> dict[str, Any]:
        return {"program": "build_examples", **asked, "inputs": input_hashes(files)}

    def examples() -> tuple[list[Example], dict[str, int]]:
        if options.format == "scp":
            found, counts = scp_examples((path, line, row) for path in files for line, row in read_rows(path))
        else:
            found, counts = corpus_examples(list(read_described(files, fields)), settings)
        if not found:
            raise InputError(
                f"{', '.join(files)}: gave no example ({counts}); give a corpus with more text, or hold less out"
            )
        return found, counts

    def write(prepared: tuple[list[Example], dict[str, int]], lease: Lease | None) -> dict[str, Any]:
        return write_examples(options.output, prepared[0], recipe=recipe(), counts=prepared[1])

    return ArtefactJob(
        output=options.output,
        kind="EXAMPLES",
        plan=lambda: {**asked, "inputs": files, "output": options.output},
        recipe=recipe,
        prepare=examples,
        write=write,
        report=lambda manifest: print(f"{options.output}: EXAMPLES {json.dumps(manifest['counts'])}"),
    ).run(dry_run=options.dry_run)


if __name__ == "__main__":
    command_line(main)
