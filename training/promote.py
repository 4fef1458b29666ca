"""Move a model's alias to a version that beats the one that holds it, or say why not.

    python -m training.promote --name MODEL --version N [--alias champion] --tracking-uri sqlite:///PATH
    python -m training.promote --name MODEL --rollback [--alias champion] --tracking-uri sqlite:///PATH

Compared is the log-likelihood of each held-out question's answer after reading what the system retrieved, by a paired
test. Every version must reach the floors, the first one too. The version's tags record each decision; clara registry
shows them. Exit status: 0 the version holds the alias now, 3 it does not.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clara.config.flags import Command, add_setting
from clara.errors import InputError, command_line
from clara.intervals import PairedTest, paired_test
from training.registry import floors
from training.registry.evaluated import Held, evaluated, target_numbers
from training.registry.record import PROMOTED, PROMOTION, REFUSED, ROLLED_BACK, Entry, holders, note, record_of
from training.registry.store import answers, check_names, open_store, versions_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NOT_PROMOTED = 3


@dataclass(frozen=True)
class Decision:
    """Whether the challenger takes the alias, why, and the paired test (None if it was impossible or not needed)."""

    promoted: bool
    reason: str
    test: PairedTest | None = None


def decide(challenger: Held, champion: Held, *, measure: str, level: float, seed: int = 0) -> Decision:
    """Compare two systems on the same questions. Interval and test resample targets.

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
    test = paired_test(
        [challenger.values[n] for n in names],
        [champion.values[n] for n in names],
        seed,
        groups=target_numbers(challenger.asked, names),
    )
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


def model_version(client: "MlflowClient", name: str, version: str) -> "ModelVersion":
    """A version by number, or the newest one for `latest`.

    Raises:
        InputError: the model has no such version.
    """
    versions = versions_of(client, name)
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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--version", help="challenger: a version's number, or latest")
    what.add_argument(
        "--rollback", action="store_true", help="move the alias back to the version that held it before, by the record"
    )
    for name in ("alias", "split", "measure", "level", "floors"):
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
        return roll_back(client, options) if options.rollback else promote(client, options)


def promote(client: "MlflowClient", options: argparse.Namespace) -> int:
    """Decide, say so, move the alias, and add to the record. Returns the exit status.

    Raises:
        InputError: as raised by `model_version`, `evaluated` and `floors.check`.
    """
    challenger = model_version(client, options.name, options.version)
    champion = holder(client, options.name, options.alias)
    own = evaluated(client, challenger, options.split)
    held, checks = own.held(options.measure), list[floors.Check]()
    holds = champion is not None and champion.version == challenger.version
    if not holds:
        checks = floors.check(own, options.floors)
    if holds:
        decision = Decision(True, f"holds {options.alias} already")
    elif refusal := floors.refusal(checks):
        decision = Decision(False, refusal)
    elif champion is None:
        decision = Decision(True, f"nobody holds {options.alias}{_reached(checks)}")
    else:
        old = evaluated(client, champion, options.split).held(options.measure)
        decision = decide(held, old, measure=options.measure, level=options.level)
    against = f" against version {champion.version}" if champion is not None and not holds else ""
    verdict = "promoted" if decision.promoted else "not promoted"
    text = f"{options.name} version {challenger.version} {verdict} to {options.alias}{against}: {decision.reason}"
    if not options.dry_run and not holds:
        if decision.promoted:
            client.set_registered_model_alias(options.name, options.alias, challenger.version)
        # After the alias: a record without its last move still rolls back to the right version.
        entry = Entry(
            alias=options.alias,
            version=str(challenger.version),
            before=None if champion is None else str(champion.version),
            outcome=PROMOTED if decision.promoted else REFUSED,
            reason=decision.reason,
            split=options.split,
            measure=options.measure,
            questions=challenger.tags.get("clara.questions_hash", ""),
            test=None if decision.test is None else dataclasses.asdict(decision.test),
            floors=tuple(dataclasses.asdict(each) for each in checks),
        )
        note(client, options.name, entry)
        client.set_model_version_tag(options.name, challenger.version, f"{PROMOTION}.{options.alias}", text)
    print(text)
    return 0 if decision.promoted else NOT_PROMOTED


def _reached(checks: list[floors.Check]) -> str:
    return f"; it reaches the floors {', '.join(each.floor for each in checks)}" if checks else ""


def roll_back(client: "MlflowClient", options: argparse.Namespace) -> int:
    """Move the alias back to who held it before, say so, and add to the record. Returns the exit status.

    Raises:
        InputError: nobody held the alias before, by the record; or that version was deleted.
    """
    name, alias, versions = options.name, options.alias, versions_of(client, options.name)
    champion = holder(client, name, alias)
    if champion is None:
        raise InputError(f"--alias {alias!r}: no version of {name} holds it; promote one with --version")
    before = holders(record_of(versions.values()), alias)
    if before[-1:] == [str(champion.version)]:
        before.pop()
    if not before:
        raise InputError(
            f"--rollback: nobody held {alias} of {name} before version {champion.version}, by the record of promotions "
            "(clara registry shows it); promote another version with --version"
        )
    target = before[-1]
    if target not in versions:
        raise InputError(
            f"--rollback: version {target} of {name}, which held {alias} before version {champion.version}, was "
            f"deleted; there are {', '.join(sorted(versions, key=int))}; promote one with --version"
        )
    text = f"{name} version {target} has {alias} back from version {champion.version}"
    if not options.dry_run:
        client.set_registered_model_alias(name, alias, target)
        note(client, name, Entry(alias, target, str(champion.version), ROLLED_BACK, text))
        client.set_model_version_tag(name, target, f"{PROMOTION}.{alias}", text)
    print(f"{text} (dry run: nothing is changed)" if options.dry_run else text)
    return 0


if __name__ == "__main__":
    command_line(main)
