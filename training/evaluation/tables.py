"""Tables of the report: the measures of each, and figures as text, Markdown and lines on a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from clara.config.evaluation import ANSWER_SECONDS, CONDITIONS
from clara.intervals import PairedTest
from training.evaluation.alignment import GENERATOR, TEXT, Moved
from training.evaluation.measures import CUTOFFS, NDCG_AT, Figure
from training.evaluation.overlap import FIRST, Overlap, overlap_table
from training.evaluation.retrievers import DEPTH

Columns = tuple[tuple[str, str], ...]
Table = tuple[list[str], list[list[str]]]

TABLE: Columns = (
    ("R@1", "index.recall@1"),
    ("R@5", "index.recall@5"),
    ("R@20", "index.recall@20"),
    ("MRR", "index.mrr"),
    ("nDCG@10", "index.ndcg@10"),
    ("pool R@1", "pool.recall@1"),
    ("pool R@5", "pool.recall@5"),
    ("pool MRR", "pool.mrr"),
    ("LL index", "index.log_likelihood"),
    ("LL pool", "pool.log_likelihood"),
    ("LL right", "right.log_likelihood"),
    ("LL wrong", "wrong.log_likelihood"),
    ("LL none", "none.log_likelihood"),
    ("right-wrong", "gap.right_minus_wrong"),
    ("EM", "index.exact_match"),
    ("F1", "index.f1"),
    ("cover", "index.cover_match"),
    ("substring", "index.substring_match"),
)
"""Columns of the first table and of the terminal: heading and measure."""


def _ranking(where: str) -> Columns:
    heads = (("R", "recall"), ("P", "precision"), ("MRR", "mrr"))
    cut = ((f"{head}@{k}", f"{where}.{name}@{k}") for head, name in heads for k in CUTOFFS)
    return (*cut, ("MRR", f"{where}.mrr"), (f"nDCG@{NDCG_AT}", f"{where}.ndcg@{NDCG_AT}"))


def _aligned(who: str) -> Columns:
    kinds = (
        (who, who),
        (f"{who}, words", f"{who}_lexical"),
        (f"{who}, solo", f"{who}_solo"),
        (f"{who}, solo, words", f"{who}_solo_lexical"),
    )
    return tuple((head, f"alignment.{name}") for head, name in kinds)


ALIGNMENT: Columns = (*_aligned(GENERATOR), *_aligned(TEXT))
HOPS: Columns = tuple(
    (f"{place}, {head}", f"{where}.{name}")
    for where, place in (("pool", "pool"), ("index", "index"))
    for head, name in (("first hop", "first_hop_rank"), ("bridging", "bridging_rank"))
)
ANSWERS: Columns = tuple(
    (f"{condition} {head}", f"{condition}.{name}")
    for condition in CONDITIONS
    for head, name in (("EM", "exact_match"), ("F1", "f1"), ("cover", "cover_match"), ("substring", "substring_match"))
)
TIME: Columns = (("seconds", ANSWER_SECONDS),)
DETAILS: Mapping[str, Columns] = {
    "Retrieval over the whole index": _ranking("index"),
    "Retrieval in the pools": _ranking("pool"),
    "Generated answers, by what was read": ANSWERS,
    "Utility alignment (Spearman's correlation of retrieval score and utility in the pool)": ALIGNMENT,
    "Mean rank of a multi-hop question's paragraphs": HOPS,
    "Seconds of a whole answer, one question at a time": TIME,
}
"""Tables under the first one, by heading."""
DIFFERENCES = "Paired differences"
COMPARED: Columns = (*TABLE, *ALIGNMENT, *((f"rank: {head}", name) for head, name in HOPS), *TIME)
FOUND_BY = f"Questions with a right document among the first {FIRST} of the index, by who finds it"
PUSHED_DOWN, PULLED_UP = "Pushed down although they look alike", "Pulled up although they don't look alike"

LEGEND = (
    "R@k, P@k and MRR@k: share of the known right documents among the first k, share of right ones among the first k, "
    "and reciprocal rank of the first right one (MRR without k: of the whole ranking), over the whole index and in "
    "fixed pools. nDCG@10: gain of the first ten, by grade where documents have grades, over the best there is. "
    "LL: log-likelihood of the answer in nats (0 is best), after reading the K documents retrieved from "
    "the index or pool, the right one, a wrong one of the pool, or none. EM, F1, cover, substring: the generated "
    "answer after reading what the index gave; cover: every word of an accepted answer appears in it, in any order; "
    "substring: as one run of words. Answer likelihood and utility are of the first accepted wording of the answer; "
    "EM, F1, cover and substring take the best one. Means over questions; in brackets the 95 % bootstrap interval, "
    "which draws questions of one target together. "
    "Rows are RETRIEVER/GENERATOR: `NAME` is a system as it is; `bm25/NAME` and `dense/NAME`: the baseline retrieves, "
    "NAME's generator reads; `A/B`: A retrieves, B's generator reads; `text/R`: the plain language model reads the raw "
    "passages that R retrieved. Utility of a document: gain in the answer's log-likelihood from its being among the "
    "selected, the others kept; solo: alone against nothing; measured by the row's generator and, as "
    f"`{TEXT}`, by the plain language model on raw text; words: BM25's score in place of the retriever's. Ranks begin "
    f"at 1; over the index a paragraph that is not among the first {DEPTH} counts as {DEPTH + 1}."
)


def shown(figure: Figure, *, interval: bool) -> str:
    """A figure as text; three digits suit shares and nats alike."""
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" if interval else f"{figure.value:.3f}"


def figure_table(found: Mapping[str, Mapping[str, Figure]], *, interval: bool, columns: Columns = TABLE) -> Table:
    """Heading and rows: a row for each system, a column for each measure that any has, and the number of questions."""
    there = [(head, name) for head, name in columns if any(name in of for of in found.values())]
    lines = []
    for system, of in found.items():
        known = [of[name] for _, name in there if name in of]
        if known or columns is TABLE:
            largest = max((f.num_questions for f in known), default=0)
            lines.append(
                [system, str(largest), *(shown(of[name], interval=interval) if name in of else "" for _, name in there)]
            )
    return ["system", "n", *(head for head, _ in there)], lines


def difference_table(compared: Mapping[str, Mapping[str, PairedTest]]) -> Table:
    """Heading and lines: a line for each pair of systems and measure of `COMPARED`."""
    lines = []
    for pair, of in compared.items():
        for head, name in COMPARED:
            if name in of:
                d = of[name]
                lines.append(
                    [
                        pair,
                        head,
                        f"{d.difference:+.3f}",
                        f"[{d.low:+.3f}, {d.high:+.3f}]",
                        f"{d.p_value:.4f}",
                        str(d.num_questions),
                    ]
                )
    return ["pair", "measure", "difference", "95 % interval", "p", "n"], lines


def moved_table(moved: Sequence[Moved]) -> Table:
    """Heading and lines: a line for each document; ranks begin at 1."""
    heading = [
        "question",
        "document",
        "right",
        "rank by words",
        "before",
        "after",
        "utility, generator",
        "utility, text",
    ]
    lines = [
        [
            m.question,
            m.title,
            "yes" if m.positive else "no",
            *(str(position + 1) for position in (m.lexical_place, m.before, m.after)),
            f"{m.utility:+.3f}",
            f"{m.text_utility:+.3f}",
        ]
        for m in moved
    ]
    return heading, lines


def count_table(counts: Mapping[str, Any]) -> Table:
    """Heading and lines of the counts."""
    return ["what", "number"], [[str(k), str(v)] for k, v in counts.items()]


def tables_of(
    found: Mapping[str, Mapping[str, Figure]],
    compared: Mapping[str, Mapping[str, PairedTest]],
    moved: Mapping[str, Sequence[Moved]],
    kinds: Mapping[str, Mapping[str, Mapping[str, Figure]]],
    shared: Mapping[str, Sequence[Overlap]],
) -> dict[str, Table]:
    """All tables of a split by heading, the first one first; what nothing was measured for has none."""
    tables = {"": figure_table(found, interval=True)}
    for kind, of in kinds.items():
        tables[f"Questions of kind {kind or 'not known'}"] = figure_table(of, interval=True)
    if compared:
        tables[DIFFERENCES] = difference_table(compared)
    if (found_by := overlap_table(shared))[1]:
        tables[FOUND_BY] = found_by
    for heading, columns in DETAILS.items():
        table = figure_table(found, interval=True, columns=columns)
        if table[1]:
            tables[heading] = table
    return tables | {heading: moved_table(of) for heading, of in moved.items()}


def as_markdown(table: Table) -> str:
    """A table in Markdown."""
    heading, lines = table
    # A bar of a title or question would begin a column.
    rows = [[cell.replace("|", "\\|") for cell in cells] for cells in (heading, ["---"] * len(heading), *lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def as_text(table: Table) -> str:
    """A table for the terminal, columns aligned."""
    heading, lines = table
    widths = [max(len(cells[i]) for cells in (heading, *lines)) for i in range(len(heading))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        for cells in (heading, *lines)
    )
