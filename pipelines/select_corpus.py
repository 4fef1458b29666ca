"""A smaller corpus whose articles mention each other densely, for bridge cloze questions.

python -m pipelines.select_corpus --input corpus.jsonl --output small.jsonl --documents 1000

Articles are taken away one by one, always the one with the fewest mentions to and from those still there, as in the
computation of k-cores; mentions of one article count up to --max-per-target, as more give no question.
"""

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from clara.config.flags import Command, add_setting
from clara.data.records import Document
from clara.errors import InputError, command_line
from pipelines.corpus.arguments import add_field_arguments, given_fields
from pipelines.corpus.bridges import ClozeSettings, cloze_questions, find_bridges, split_of
from pipelines.corpus.whole import corpus_files, read_corpus, rows_of, write_jsonl


def densest(edges: Iterable[tuple[str, str]], nodes: Sequence[str], number: int, cap: int, seed: int = 0) -> set[str]:
    """The nodes that are left when the poorest is removed until `number` are.

    Args:
        edges: source and target, once for each question.
        nodes: all of them.
        number: how many to keep.
        cap: most edges to one target that count.
        seed: orders equally poor nodes.

    Returns:
        The kept nodes; the same for any order of nodes and edges.
    """
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    targets: dict[str, Counter[str]] = defaultdict(Counter)
    for source, target in edges:
        sources[target][source] += 1
        targets[source][target] += 1
    incoming = {node: sources[node].total() for node in nodes}

    def worth(node: str) -> int:
        # A mention of a target that has more than it needs is worth nothing to its source.
        return min(incoming[node], cap) + sum(
            count for target, count in targets[node].items() if target in kept and incoming[target] <= cap
        )

    kept = set(nodes)
    order = {node: hashlib.sha256(f"{seed}:{node}".encode()).hexdigest() for node in nodes}
    heap = [(worth(node), order[node], node) for node in nodes]
    heapq.heapify(heap)
    while len(kept) > number:
        value, _, node = heapq.heappop(heap)
        if node not in kept:
            continue
        if value != (now := worth(node)):
            heapq.heappush(heap, (now, order[node], node))
            continue
        kept.remove(node)
        neighbours = set(sources[node])
        for target, count in targets[node].items():
            if target in kept:
                incoming[target] -= count
                neighbours |= {target, *sources[target]} if incoming[target] <= cap else {target}
        for neighbour in neighbours & kept:
            heapq.heappush(heap, (worth(neighbour), order[neighbour], neighbour))
    return kept


def select(
    documents: Sequence[Document], number: int, seed: int = 0, settings: ClozeSettings | None = None
) -> list[Document]:
    """The `number` documents of a corpus that mention each other most densely, in the corpus' order.

    Raises:
        InputError: there are fewer.
    """
    settings = settings or ClozeSettings()
    if not 1 <= number <= len(documents):
        raise InputError(
            f"--documents is {number}, the corpus has {len(documents)} documents; give 1 to {len(documents)}, or a "
            "larger corpus"
        )
    bridges, _ = find_bridges(documents, settings)
    # Sorted, so that the corpus' order does not matter.
    edges = sorted((b.source_id, b.target_id) for b in bridges if split_of(b, settings))
    kept = densest(edges, sorted(d.id for d in documents), number, settings.max_per_target, seed)
    return [d for d in documents if d.id in kept]


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("pipelines.select_corpus", __doc__)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="FILE",
        help="corpus: JSONL, Parquet or plain text files, or quoted globs",
    )
    add_setting(
        parser, "output", metavar="FILE", required=True, note="here JSONL: the chosen lines with all their fields"
    )
    add_field_arguments(parser)
    for key in ("selection.documents", "cloze.max_per_target", "cloze.held_out_share", "seed"):
        add_setting(parser, key)
    parser.add_argument("--dry-run", action="store_true", help="choose and report, write nothing")
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    fields = given_fields(options)
    files = corpus_files(options.input, fields)
    documents = read_corpus(files, fields)
    settings = ClozeSettings(max_per_target=options.max_per_target, held_out_share=options.held_out_share)
    chosen = select(documents, options.documents, options.seed, settings)
    questions, _ = cloze_questions(chosen, settings)
    splits = Counter(q.split for q in questions)
    asked = len({q.positive_ids for q in questions})
    print(
        f"{len(chosen)} of {len(documents)} documents, {asked} asked for; bridge cloze questions: "
        f"{json.dumps(dict(sorted(splits.items())))}"
    )
    if options.dry_run:
        return 0
    wanted = {d.id for d in chosen}
    rows: dict[str, dict[str, Any]] = {}
    for row, document in rows_of(files, fields, report=False):
        if document.id in wanted:
            plain = {
                key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                for key, value in row.items()
            }
            rows.setdefault(document.id, {**plain, fields.id: document.id})
    print(f"{options.output}: {write_jsonl(options.output, rows.values())} documents")
    return 0


if __name__ == "__main__":
    command_line(main)
