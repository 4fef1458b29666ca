"""What a synthesis may cost, estimated before the first request."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clara.config.synthesis import Synthesis
from clara.data.records import Document
from pipelines.corpus.chunking import Tokens
from pipelines.corpus.chunks import Reading, chunks_of, documents_of
from pipelines.corpus.dead_letter import DeadLetter
from pipelines.corpus.near_duplicates import MinHashSettings, Origin, Signature, band_keys, duplicates, signature
from pipelines.corpus.splits import Unit
from pipelines.synthesize.outcome import SynthesisJob
from pipelines.synthesize.prompts import Templates
from pipelines.synthesize.replies import MAX_CHARACTERS

# A word counts a token for every four letters begun, and every mark one: with most tokenizers of LMs a text has fewer.
_PIECE = re.compile(r"\w{1,4}|[^\w\s]")
_CHARACTERS_PER_TOKEN = 4
EXPECTED_QUESTIONS = {"simple": 8, "complex": 5}
"""Questions of an example, about as many as published synthetic data have."""


@dataclass(frozen=True)
class Cost:
    """Requests, and tokens both ways."""

    requests: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
        )

    def price(self, prompt: float, reply: float) -> float:
        """What it costs at prices for a million tokens."""
        return (self.prompt_tokens * prompt + self.reply_tokens * reply) / 1e6


@dataclass(frozen=True)
class _Asked:
    """So many requests of a template: tokens of each that are neither template nor document, and of each reply."""

    name: str
    count: int
    tokens: int
    reply_tokens: int


def pieces() -> Tokens:
    """What chunking needs where no tokenizer is given: tokens as they are estimated here."""
    return Tokens(
        lambda text: [found.span() for found in _PIECE.finditer(text)], lambda text: len(_PIECE.findall(text))
    )


def _sum(asked: Sequence[_Asked], num_tokens: int, templates: Templates) -> Cost:
    cost = Cost()
    for a in asked:
        prompt = templates.num_characters(a.name) // _CHARACTERS_PER_TOKEN + num_tokens + a.tokens
        cost += Cost(a.count, a.count * prompt, a.count * a.reply_tokens)
    return cost


def at_most(num_tokens: int, templates: Templates, settings: Synthesis) -> Cost:
    """The most that a chunk of so many tokens can cost: every question, round and retry, with the longest replies."""
    longest, questions, asked = MAX_CHARACTERS // _CHARACTERS_PER_TOKEN, settings.max_questions, list[_Asked]()
    reply = settings.max_reply_tokens
    checks = 0 if settings.coverage == "off" else settings.max_rounds + 1
    for kind in settings.kinds:
        if kind == "paraphrase":
            asked += [
                _Asked(kind, 1, 0, reply),
                _Asked("verify_paraphrase", 1, reply, reply),
            ]
        else:
            asked += [
                _Asked(kind, 1, 0, reply),
                _Asked("answer", questions, longest, reply),
                _Asked("verify", questions, 2 * longest, reply),
                _Asked(f"cover_{kind}", checks, 2 * longest * questions, reply),
            ]
    again = templates.num_characters("again") // _CHARACTERS_PER_TOKEN * (settings.attempts - 1)
    tries = [_Asked(a.name, a.count * settings.attempts, a.tokens + again, a.reply_tokens) for a in asked]
    return _sum(tries, num_tokens, templates)


def expected(num_tokens: int, templates: Templates, settings: Synthesis) -> Cost:
    """Cost of a chunk if the model does well: `EXPECTED_QUESTIONS`, covered at the first check, short replies."""
    asked = list[_Asked]()
    for kind in settings.kinds:
        if kind == "paraphrase":
            asked += [_Asked(kind, 1, 0, num_tokens + 10), _Asked("verify_paraphrase", 1, num_tokens, 8)]
        else:
            questions = min(EXPECTED_QUESTIONS[kind], settings.max_questions)
            asked += [
                _Asked(kind, 1, 0, 25 * questions),
                _Asked("answer", questions, 20, 15),
                _Asked("verify", questions, 35, 8),
                _Asked(f"cover_{kind}", int(settings.coverage != "off"), 35 * questions, 12),
            ]
    return _sum(asked, num_tokens, templates)


def _documents(units: Sequence[Unit], job: Reading) -> Iterator[Document]:
    """The documents that pass the filters and are within the limit, in the order of the corpus."""
    ordered = sorted(units, key=lambda unit: (unit.name, unit.first_line))
    documents = (found for unit in ordered for found in documents_of(unit, job) if isinstance(found, Document))
    return itertools.islice(documents, job.limit or None)


def _near_duplicates(documents: Iterator[Document], min_hash: MinHashSettings) -> set[Origin]:
    """Source and line of the documents that are dropped because an earlier one is similar."""
    buckets: dict[bytes, list[tuple[Origin, Signature]]] = defaultdict(list)
    for document in documents:
        own = signature(document.text)
        for key in band_keys(own, min_hash):
            buckets[key].append(((document.source, document.line, document.id), own))
    return {dropped for bucket in buckets.values() for dropped, _ in duplicates(bucket, min_hash.threshold)}


def total_cost(units: Sequence[Unit], job: SynthesisJob) -> tuple[int, Cost, Cost]:
    """The number of different chunks, the most that they can cost, and what they cost if the model does well.

    Raises:
        InputError: the corpus or the tokenizer cannot be read.
    """
    reading, tokens = job.chunking, job.chunking.load_tokens()
    dropped = _near_duplicates(_documents(units, reading), reading.min_hash) if reading.min_hash else set()
    sizes: dict[str, int] = {}
    for document in _documents(units, reading):
        if (document.source, document.line, document.id) not in dropped:
            chunks = chunks_of(document, tokens, reading)
            if not isinstance(chunks, DeadLetter):
                sizes.update((chunk.chunk_id, chunk.num_tokens) for chunk in chunks)
    most, likely = Cost(), Cost()
    for num_tokens in sizes.values():
        most += at_most(num_tokens, job.templates, job.settings)
        likely += expected(num_tokens, job.templates, job.settings)
    return len(sizes), most, likely
