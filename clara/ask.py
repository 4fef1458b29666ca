"""Ask a trained system: each answer with the passages that it came from.

python -m clara.ask --checkpoint DIR --memory DIR --index DIR "question" ["question" …]

--explain shows for each passage which sources found it, and what the memory and each feature add to its score z.
"""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from clara.opening import Resolve, add_system_settings, as_it_is, open_system

if TYPE_CHECKING:
    from clara.retrieval.answered import Answered

SNIPPET_CHARACTERS = 200


def as_text(answered: "Answered", snippet_characters: int = SNIPPET_CHARACTERS, *, explain: bool = False) -> str:
    """A question, its answer and the passages as lines of text; on request with what found and scored each of them."""
    lines = [f"Q: {answered.question}", f"A: {answered.text or '(nothing)'}"]
    if answered.unread:
        lines.append(f"  (the question is too long: it was searched for without {answered.unread!r})")
    for number, passage in enumerate(answered.passages, 1):
        title = passage.title or passage.document_id
        lines.append(f"  [{number}] {passage.score:+.4f}  {title}")
        if explain:
            parts = " + ".join(f"{name} {value:.2f}" for name, value in passage.why.items())
            lines.append(
                f"      z {sum(passage.why.values()):.2f} = {parts}; found by "
                f"{', '.join(passage.sources) or 'no source (every row was scored)'}"
            )
        snippet = textwrap.shorten(passage.text, snippet_characters, placeholder=" …")
        lines += textwrap.wrap(snippet, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("clara.ask", __doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="what to ask; several are answered in one go")
    add_system_settings(parser)
    add_setting(parser, "serving.num_selected", metavar="K")
    add_setting(parser, "serving.max_new_tokens")
    parser.add_argument("--explain", action="store_true", help="show why each passage was found")
    parser.add_argument(
        "--judge-by",
        default="",
        metavar="DIR",
        help="QUESTIONS with the accepted answers to what is asked: say which answers are right (exact match, without "
        "case, punctuation and articles)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    parser.add_argument("--dry-run", action="store_true", help="open everything, check that it fits, and stop")
    return parser


def accepted_answers(directory: str, questions: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Accepted answers of each question, by QUESTIONS that hold it.

    Raises:
        InputError: they don't hold one of the questions.
    """
    from clara.data.questions import read_questions

    known = {q.question: q.answers for q in read_questions(directory)}
    for question in questions:
        if question not in known:
            raise InputError(f"--judge-by {directory}: does not hold {question!r}; ask its questions, or leave it out")
    return {question: known[question] for question in questions}


def verdict(text: str, accepted: Sequence[str]) -> bool:
    """Whether an answer equals an accepted one, up to case, punctuation and articles."""
    from clara.metrics import exact_match

    return exact_match(text, accepted) == 1.0


def main(argv: list[str], resolve: Resolve = as_it_is) -> int:
    """The command line.

    Args:
        argv: arguments.
        resolve: see `Resolve`.
    """
    options = parser().parse_args(argv)
    if not options.questions and not options.dry_run:
        raise InputError("no question given; add at least one, in quotes, at the end of the command")
    accepted = accepted_answers(options.judge_by, options.questions) if options.judge_by else {}
    system = open_system(options, resolve(options.checkpoint, options.tracking_uri))
    if options.dry_run:
        store = system.retriever.store
        print(f"{options.memory}: {len(store)} rows, fingerprint {store.fingerprint[:16]}…, fits {options.checkpoint}")
        return 0
    answers = system.ask(options.questions, passages=options.num_selected, max_new_tokens=options.max_new_tokens)
    right = {a.question: verdict(a.text, accepted[a.question]) for a in answers if a.question in accepted}
    for number, answered in enumerate(answers):
        judged = {"right": right[answered.question]} if accepted else {}
        if options.json:
            print(json.dumps(dataclasses.asdict(answered) | judged, ensure_ascii=False))
            continue
        print(("\n" if number else "") + as_text(answered, explain=options.explain))
        if accepted:
            expected = " or ".join(accepted[answered.question])
            print("  right" if right[answered.question] else f"  wrong; expected {expected}")
    if accepted and not options.json:
        print(f"\n{sum(right.values())} of {len(right)} answers are right.")
    return 0


if __name__ == "__main__":
    command_line(main)
