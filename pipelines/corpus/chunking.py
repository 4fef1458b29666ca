"""Splits documents into chunks: by the compressor's tokens, at sentence ends if possible, never truncated silently."""

import bisect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clara.data.records import Chunk, Document, chunk_id, input_text, row_id
from clara.errors import InputError

MIN_CHUNK_TOKENS = 16
_CHARACTERS_A_TOKEN = 32
# A sentence ends behind its mark and closing quotes, before white space; CJK marks need none.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*")


@dataclass(frozen=True)
class Tokens:
    """The functions of a tokenizer that chunking needs.

    Attributes:
        offsets: a text's tokens as character spans (start, end), ascending; special tokens in the text are plain text.
        count: number of tokens that the compressor will read for a text.
    """

    offsets: Callable[[str], Sequence[tuple[int, int]]]
    count: Callable[[str], int]


class ChunkingError(ValueError):
    """A document that gives no chunk; the message says why."""


def check_limits(max_tokens: int, overlap_tokens: int) -> None:
    """Check that chunks advance with these limits.

    Raises:
        InputError: `max_tokens` under 16, or `overlap_tokens` not between 0 and half of it.
    """
    if max_tokens < MIN_CHUNK_TOKENS:
        raise InputError(f"--max-tokens {max_tokens}: expected at least {MIN_CHUNK_TOKENS} tokens")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise InputError(f"--overlap-tokens {overlap_tokens}: expected 0 to {max_tokens // 2}, half of --max-tokens")


def chunk_document(document: Document, tokens: Tokens, max_tokens: int, overlap_tokens: int) -> list[Chunk]:
    """The chunks of a document, in order; together they contain the whole text except white space at the cuts.

    A title longer than half of `max_tokens` is cut, and a sentence longer than a chunk is cut between words: such
    chunks are `truncated`.

    Args:
        document: its title and text are normalised.
        tokens: the compressor's tokenizer.
        max_tokens: maximum number of tokens of a chunk, including its title.
        overlap_tokens: about this many tokens are repeated from the previous chunk.

    Raises:
        ChunkingError: the text has no tokens.
    """
    title = _fit(document.title, tokens, max_tokens // 2) if document.title else ""
    chunks = []
    for start, end, num_tokens, mid_sentence in _spans(title, document.text, tokens, max_tokens, overlap_tokens):
        text = document.text[start:end]
        identity = chunk_id(title, text)
        truncated = mid_sentence or title != document.title
        chunks.append(
            Chunk(
                row_id(identity), identity, document.id, title, text, start, end, num_tokens, truncated, document.source
            )
        )
    if not chunks:
        raise ChunkingError("the tokenizer finds no token in the text")
    return chunks


def _fit(text: str, tokens: Tokens, limit: int) -> str:
    """The longest start of a text with at most `limit` tokens, cut between words where it can be."""
    keep = limit
    while tokens.count(text) > limit:
        spans = tokens.offsets(text)
        keep = min(keep, len(spans) - 1)
        end = spans[keep][0]
        space = text.rfind(" ", 1, end + 1)
        text = text[: space if space > 0 else max(end, 1)].strip()
        keep -= 1
    return text


def _spans(
    title: str, text: str, tokens: Tokens, max_tokens: int, overlap_tokens: int
) -> list[tuple[int, int, int, bool]]:
    """Character spans with their number of tokens, and whether each ends inside a sentence."""
    if len(text) <= _CHARACTERS_A_TOKEN * max_tokens:  # a longer text is unlikely to fit into one chunk
        num_tokens = tokens.count(input_text(title, text))
        if 0 < num_tokens <= max_tokens:
            return [(*_stripped(text, 0, len(text)), num_tokens, False)]
    starts = [start for start, _ in tokens.offsets(text)]
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    room = max_tokens - (tokens.count(title + "\n") if title else 0)
    spans: list[tuple[int, int, int, bool]] = []
    begin = done = 0
    while done < len(text):
        budget = room
        while True:
            end, mid_sentence = _cut(text, starts, ends, begin, done, budget)
            first, last = _stripped(text, begin, end)
            num_tokens = tokens.count(input_text(title, text[first:last])) if last > first else 0
            if num_tokens <= max_tokens:
                break
            if budget > 1:
                budget = max(1, budget - (num_tokens - max_tokens))
            elif begin < done:
                begin, budget = done, room  # the repeated part leaves no room for anything new
            else:
                raise ChunkingError(f"no piece of the text at character {begin} fits into {max_tokens} tokens")
        if num_tokens:
            spans.append((first, last, num_tokens, mid_sentence))
        begin = (
            _repeat_from(text, starts, ends, begin, end, overlap_tokens) if overlap_tokens and end < len(text) else end
        )
        done = end
    return spans


def _stripped(text: str, begin: int, end: int) -> tuple[int, int]:
    while begin < end and text[begin].isspace():
        begin += 1
    while end > begin and text[end - 1].isspace():
        end -= 1
    return begin, end


def _cut(text: str, starts: Sequence[int], ends: Sequence[int], begin: int, done: int, budget: int) -> tuple[int, bool]:
    """End of the chunk that begins at `begin`, after `done`, within `budget` tokens; True if inside a sentence."""
    limit_token = bisect.bisect_left(starts, begin) + budget
    if limit_token >= len(starts):
        return len(text), False
    limit = starts[limit_token]
    position = bisect.bisect_right(ends, limit) - 1
    if position >= 0 and ends[position] > max(begin, done):
        return ends[position], False
    space = text.rfind(" ", max(begin, done) + 1, limit + 1)
    if space > 0:
        return space, True
    return max(limit, begin + 1, done + 1), True


def _repeat_from(
    text: str, starts: Sequence[int], ends: Sequence[int], begin: int, end: int, overlap_tokens: int
) -> int:
    """Start of the next chunk, repeating about `overlap_tokens` at most: at a sentence, a word, or `end`."""
    # One less: with some tokenizers a token begins at the white space behind the sentence's end, with others after it.
    target = starts[max(bisect.bisect_left(starts, end) - overlap_tokens, 0)] - 1
    position = bisect.bisect_left(ends, target)
    if position < len(ends) and begin < ends[position] < end:
        return ends[position]
    space = text.find(" ", max(target, begin + 1), end)
    return space if space > 0 else end
