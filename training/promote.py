"""Move a model's alias to a version that beats the one that holds it, or say why not.

python -m training.promote --name MODEL --version N [--alias champion] --tracking-uri sqlite:///PATH

Compared is the log-likelihood of each held-out question's answer after reading what the system retrieved, by a paired
test. Exit status: 0 the version holds the alias now, 3 it does not.
"""

import argparse
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from clara.metrics import PairedTest, paired_test
from training.evaluation.files import PER_QUESTION
from training.registry.registration import EVALUATION
from training.registry.store import answers, check_names, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NOT_PROMOTED = 3


@dataclass(frozen=True)
class Held:
    """What a version's evaluation says: each question's wording and answers, and the measure, by question id."""

    asked: dict[str, tuple[Any, ...]]
    values: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """Whether the challenger takes the alias, why, and the paired test (None if it was impossible or not needed)."""

    promoted: bool
    reason: str
    test: PairedTest | None = None


def decide(challenger: Held, champion: Held, *, measure: str, level: float, seed: int = 0) -> Decision:
    """Compare two systems on the same questions.

    Args:
        challenger: wants the alias.
        champion: holds it.
        measure: what is compared, for the reason; larger is better.
        level: the p-value must be below it.
        seed: of the test.
    """
    if challenger.asked != champion.asked:
        only_new, only_old = (
            challenger.asked.keys() - champion.asked.keys(),
            champion.asked.keys() - challenger.asked.keys(),
        )
        changed = sum(challenger.asked[q] != champion.asked[q] for q in challenger.asked.keys() & champion.asked.keys())
        return Decision(
            False,
            f"evaluated on other questions ({len(only_new)} only for the challenger, {len(only_old)} only for the "
            f"champion, {changed} with another wording or answers); evaluate both on the same QUESTIONS, split and "
            "limit, and register them again",
        )
    names = sorted(challenger.values.keys() & champion.values.keys())
    if len(names) < 2 or len(names) != len(challenger.asked):
        return Decision(
            False,
            f"{measure} is known for {len(names)} of {len(challenger.asked)} questions; evaluate every question, two "
            "at least",
        )
    test = paired_test([challenger.values[n] for n in names], [champion.values[n] for n in names], seed)
    figures = (
        f"{measure} {test.difference:+.4f} [{test.low:+.4f}, {test.high:+.4f}], p = {test.p_value:.4f}, "
        f"{test.num_questions} questions"
    )
    if test.difference <= 0:
        return Decision(False, f"not better than the champion: {figures}", test)
    if test.p_value >= level:
        return Decision(
            False, f"better than the champion, but it may be chance (p must be below {level}): {figures}", test
        )
    return Decision(True, f"beats the champion: {figures}", test)


def held_out(client: "MlflowClient", version: "ModelVersion", *, split: str, measure: str) -> Held:
    """What the evaluation that a version was registered with says of it.

    Raises:
        InputError: the version was not registered by `training.register`, or its evaluation has no such split or
            measure.
    """
    from mlflow.exceptions import MlflowException

    label = f"{version.name} version {version.version}"
    system = version.tags.get("clara.system")
    if system is None or not version.run_id:
        raise InputError(f"{label}: no evaluation is known of it; register it with python -m training.register")
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(version.run_id, f"{EVALUATION}/{PER_QUESTION}", folder)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"{label}: its run {version.run_id} has no {EVALUATION}/{PER_QUESTION} ({error}); register it again"
            ) from error
        rows = pq.read_table(path).to_pylist()
    own = [row for row in rows if row["system"] == system]
    chosen = [row for row in own if row["split"] == split]
    if not chosen:
        raise InputError(
            f"{label}: no question with split {split!r}; there are {sorted({row['split'] for row in own})}; name one "
            "with --split"
        )
    if measure not in chosen[0]:
        known = [name for name in chosen[0] if "." in name]
        raise InputError(f"--measure {measure!r}: the evaluation has {', '.join(known)}; name one of them")
    return Held(
        asked={
            row["question_id"]: (row["question"], tuple(row["answers"]), tuple(row["positive_ids"])) for row in chosen
        },
        values={row["question_id"]: float(row[measure]) for row in chosen if row[measure] is not None},
    )


def model_version(client: "MlflowClient", name: str, version: str) -> "ModelVersion":
    """A version by number, or the newest one for `latest`.

    Raises:
        InputError: there is none.
    """
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if not versions:
        raise InputError(
            f"--name {name!r}: no version is registered in this store; register one with python -m training.register"
        )
    wanted = max(versions, key=int) if version == "latest" else version
    if wanted not in versions:
        raise InputError(
            f"--version {version!r}: {name} has {', '.join(sorted(versions, key=int))}; give one of them, or latest"
        )
    return versions[wanted]


def holder(client: "MlflowClient", name: str, alias: str) -> "ModelVersion | None":
    """The version that holds an alias, if one does."""
    aliases = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[alias]) if alias in aliases else None


def parser() -> Command:
    """The command line's arguments."""
    parser = Command("training.promote", __doc__)
    parser.add_argument("--name", required=True, help="registered model")
    parser.add_argument("--version", required=True, help="challenger: a version's number, or latest")
    for name in ("alias", "split", "measure", "level"):
        add_setting(parser, f"promotion.{name}")
    add_setting(parser, "tracking.uri", "--tracking-uri", metavar="URI", required=True)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")
    return parser


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    check_names(options.name, options.alias)
    client = open_store(options.tracking_uri)
    with answers(options.tracking_uri):
        return promote(client, options)


def promote(client: "MlflowClient", options: argparse.Namespace) -> int:
    """Decide, say so, and move the alias. Returns the exit status.

    Raises:
        InputError: as raised by `model_version` and `held_out`.
    """
    challenger = model_version(client, options.name, options.version)
    champion = holder(client, options.name, options.alias)
    held = held_out(client, challenger, split=options.split, measure=options.measure)
    if champion is None:
        decision = Decision(True, f"nobody holds {options.alias}")
    elif champion.version == challenger.version:
        decision = Decision(True, f"holds {options.alias} already")
    else:
        old = held_out(client, champion, split=options.split, measure=options.measure)
        decision = decide(held, old, measure=options.measure, level=options.level)
    against = (
        f" against version {champion.version}"
        if champion is not None and champion.version != challenger.version
        else ""
    )
    verdict = "promoted" if decision.promoted else "not promoted"
    text = f"{options.name} version {challenger.version} {verdict} to {options.alias}{against}: {decision.reason}"
    print(text)
    if options.dry_run:
        return 0 if decision.promoted else NOT_PROMOTED
    if champion is None or champion.version != challenger.version:
        client.set_model_version_tag(options.name, challenger.version, f"clara.promotion.{options.alias}", text)
    if decision.promoted:
        client.set_registered_model_alias(options.name, options.alias, challenger.version)
    return 0 if decision.promoted else NOT_PROMOTED


if __name__ == "__main__":
    command_line(main)
