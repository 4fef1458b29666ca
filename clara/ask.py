"""Ask a trained system: each answer with the passages that it came from.

python -m clara.ask --checkpoint DIR --memory DIR --index DIR "question" ["question" …]
"""

import argparse
import dataclasses
import json
import textwrap

from clara.errors import InputError, command_line
from clara.retrieval.retriever import Answered, Retriever
from clara.storage.cache import verify

SNIPPET_CHARACTERS = 200


def shown(answered: Answered, snippet_characters: int = SNIPPET_CHARACTERS) -> str:
    """A question, its answer and the passages as lines of text."""
    lines = [f"Q: {answered.question}", f"A: {answered.answer or '(nothing)'}"]
    for number, passage in enumerate(answered.passages, 1):
        title = passage.title or passage.document_id
        lines.append(f"  [{number}] {passage.score:+.4f}  {title}")
        snippet = textwrap.shorten(passage.text, snippet_characters, placeholder=" …")
        lines += textwrap.wrap(snippet, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m clara.ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="what to ask; several are answered in one go")
    parser.add_argument("--checkpoint", required=True, help="CHECKPOINT directory")
    parser.add_argument("--memory", required=True, help="MEMORY directory that this checkpoint's compressor made")
    parser.add_argument("--index", help="INDEX directory over that MEMORY (default: search every row exactly)")
    parser.add_argument(
        "--backbone",
        default="",
        help="folder of the language model (default: the one that the checkpoint holds or names)",
    )
    parser.add_argument(
        "--num-selected",
        type=int,
        default=5,
        metavar="K",
        help="passages that an answer is read from (default %(default)s)",
    )
    parser.add_argument(
        "--first-level",
        type=int,
        default=200,
        metavar="L",
        help="rows that the index hands to the exact score (default %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=32, help="longest answer, in tokens (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte of the MEMORY against its sha256 before (default: sizes only)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    parser.add_argument("--dry-run", action="store_true", help="open everything, check that it fits, and stop")
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    if not options.questions and not options.dry_run:
        raise InputError("no question given; add at least one, in quotes, at the end of the command")
    if options.verify:
        verify(options.memory, "MEMORY")
    retriever = Retriever.open(
        options.checkpoint,
        options.memory,
        options.index,
        backbone=options.backbone,
        device=options.device,
        first_level=options.first_level,
    )
    if options.dry_run:
        print(
            f"{options.memory}: {len(retriever.store)} rows, fingerprint {retriever.store.fingerprint[:16]}…, fits {options.checkpoint}"
        )
        return 0
    for number, answered in enumerate(
        retriever.ask(options.questions, num_selected=options.num_selected, max_new_tokens=options.max_new_tokens)
    ):
        if options.json:
            print(json.dumps(dataclasses.asdict(answered), ensure_ascii=False))
        else:
            print(("\n" if number else "") + shown(answered))
    return 0


if __name__ == "__main__":
    command_line(main)
