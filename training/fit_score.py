"""A CHECKPOINT whose fused score is fitted to what helps its reader: no label is read.

    python -m training.fit_score --checkpoint DIR --memory DIR --index DIR --questions DIR --utilities DIR --output DIR
    python -m training.fit_score --checkpoint DIR --memory DIR --index DIR --questions DIR --output DIR

z = a · cosine/τ + Σ w · feature ranks the rows of MEMORY. The weights a and w ≥ 0 are those that bring the softmax of z
over all rows nearest to what UTILITIES say of them: how much each row that was read alone makes the answer more likely.
UTILITIES are of questions whose targets the reader has not trained on, and their pools come from every source that gets
a weight; for a reader of stage joint:

    python -m pipelines.score_utilities --fold 0.1 --no-positives --from-index 10 --from-bm25 10 …

with joint.fit_share=0.1 in its training, which keeps the same targets from it.

Without --utilities, weights come from statistics of the scores of unlabelled questions: every source gets the same
lead, and the memory counts as far as it finds what the other sources find.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clara.config.dense_flags import add_dense_settings
from clara.config.flags import Command, add_setting
from clara.config.model import SOURCE_SETTINGS, FeatureName, Fusion
from clara.config.tree import Config
from clara.errors import InputError, command_line
from clara.storage.manifest import make_directory, manifest_hash, read_manifest, up_to_date
from clara.storage.paths import require_local

if TYPE_CHECKING:
    from training.score_fit.run import Fitted

_LIMIT = 256


def parser() -> Command:
    """The command line's arguments."""
    found = Command("training.fit_score", __doc__, uses=["model.fusion", "retrieval"])
    for name in ("checkpoint", "memory", "index", "questions", "utilities"):
        add_setting(found, name, metavar="DIR", required=name not in ("index", "utilities"))
    add_setting(found, "output", metavar="DIR", required=True)
    add_dense_settings(found)
    add_setting(found, "joint.utility_temperature")
    add_setting(found, "backbone.path", "--backbone", metavar="DIR")
    add_setting(found, "device")
    found.add_argument(
        "--features",
        default="",
        metavar="NAME,NAME",
        help="what gets a weight, of memory, bm25, dense (default: all sources that the pools of UTILITIES come from)",
    )
    found.add_argument(
        "--split", default="", help="without --utilities: only questions of this split give statistics (default: all)"
    )
    found.add_argument(
        "--limit", type=int, help=f"without --utilities: most questions, evenly spread (default: {_LIMIT})"
    )
    found.add_argument(
        "--compare-head",
        action="store_true",
        help="also print what weights that depend on the query would change, measured on five folds of the targets; "
        "the CHECKPOINT is the same",
    )
    found.add_argument("--dry-run", action="store_true", help="print the recipe and stop")
    return found


def features_of(utilities: dict[str, Any], path: str) -> list[FeatureName]:
    """The features that get a weight: the sources that the pools of UTILITIES come from.

    Raises:
        InputError: pools are published ones or hold known positives, or there is one source only.
    """
    recipe = utilities["made_by"]["recipe"]
    if recipe.get("published") or recipe.get("positives"):
        raise InputError(
            f"--utilities {path}: its pools {'are published ones' if recipe.get('published') else 'hold positives'}, "
            "which no source has found; score the questions again with --no-positives and without --published-pools"
        )
    names = [name for name, setting in SOURCE_SETTINGS.items() if recipe.get(setting)]
    if len(names) < 2:
        raise InputError(
            f"--utilities {path}: its pools come from {names or 'no source'}; the weights of several sources are "
            "fitted to pools of all of them (from_index, from_bm25, from_dense of score_utilities)"
        )
    return names


def chosen_features(given: str, there: list[FeatureName]) -> list[FeatureName]:
    """The features that `--features` names, in the order of the sources; empty: all.

    Raises:
        InputError: one of them is unknown, or no pool comes from it.
    """
    names = [name.strip() for name in given.split(",")] if given else list(there)
    if wrong := [name for name in names if name not in there]:
        raise InputError(
            f"--features {given}: {wrong[0]!r} is none of {', '.join(there)}: the sources of the pools of --utilities, "
            "or without it memory, bm25, and dense with --dense-model; leave it out, or score pools of that source too"
        )
    return [name for name in there if name in names]


def check(config: Config, manifest: dict[str, Any]) -> None:
    """Refuse utilities of another reader or MEMORY, and those whose targets the reader has trained on.

    Raises:
        InputError: the utilities are of another reader, MEMORY or QUESTIONS, or the reader trained on their targets.
    """
    from clara.data.utilities import reader_hash
    from clara.memory.identity import check_same_memory

    path, checkpoint = config.utilities, read_manifest(config.checkpoint, "CHECKPOINT")
    check_same_memory(manifest["memory"], config.memory, f"--utilities {path}")
    for name, found, wanted in (
        ("reader", manifest["reader"], reader_hash(config.checkpoint)),
        ("questions", manifest["made_by"]["recipe"]["inputs"]["questions"], manifest_hash(config.questions)),
    ):
        if found != wanted:
            raise InputError(
                f"--utilities {path}: scored with {name} {found[:12]}…, given is {wanted[:12]}…; score the questions "
                "again (python -m pipelines.score_utilities)"
            )
    fold = float(manifest["made_by"]["recipe"].get("fold", 0.0))
    kept = float(checkpoint.get("fit_share", 0.0))
    if checkpoint["stage"] == "joint" and (not fold or fold > kept):
        raise InputError(
            f"--utilities {path}: of a fold of {fold:g} of the targets, and the reader of {config.checkpoint} was kept "
            f"from {kept:g} of them. It has memorised the others, and weights fitted on them are too low for new "
            f"questions; train with joint.fit_share=0.1 and score with --fold 0.1"
        )


def main(argv: list[str]) -> int:
    """The command line."""
    options = parser().parse_args(argv)
    config = options.config
    require_local("output", options.output)
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit}: expected 1 question or more")
    if config.utilities and (options.split or options.limit is not None):
        raise InputError(
            "--split and --limit choose the questions of the statistics, and with --utilities there are none; leave "
            "them out, and choose questions where they are scored (python -m pipelines.score_utilities)"
        )
    if options.compare_head and not config.utilities:
        raise InputError("--compare-head measures by utilities; give --utilities")
    there: list[FeatureName] = ["memory", "bm25"]
    if config.retrieval.dense_model:
        there.append("dense")
    if config.utilities:
        manifest = read_manifest(config.utilities, "UTILITIES")
        there = features_of(manifest, config.utilities)
        check(config, manifest)
    names = chosen_features(options.features, there)
    if "dense" in names and not config.retrieval.dense_model:
        raise InputError("--utilities: pools come from dense vectors too; give their model with --dense-model")
    given = ("checkpoint", "memory", "index", "questions", "utilities")
    statistics = {"split": options.split, "limit": options.limit or _LIMIT}
    recipe = {
        "job": "fit_score",
        "inputs": {name: manifest_hash(path) for name in given if (path := getattr(config, name))},
        "features": names,
        **({"utility_temperature": config.joint.utility_temperature} if config.utilities else statistics),
    }
    if options.dry_run:
        print(json.dumps(recipe, indent=1))
        return 0
    if up_to_date(options.output, "CHECKPOINT", recipe) and not options.compare_head:
        print(f"{options.output}: up to date")
        return 0
    from training.score_fit.run import compare_head, fit_checkpoint, weigh_checkpoint  # imports torch

    output = make_directory(options.output)
    with tempfile.TemporaryDirectory(dir=output.resolve().parent) as scratch:
        if config.utilities:
            fitted = fit_checkpoint(config, names, recipe, Path(scratch))
            print(f"{output}: CHECKPOINT with {formula(fitted.fusion)}\n{report(fitted)}")
            if options.compare_head:
                for penalty, (mean, low, high) in compare_head(config, names, Path(scratch)).items():
                    print(f"  head, penalty {penalty:g}: {mean:+.3f} nats a question [{low:+.3f}, {high:+.3f}]")
        else:
            from clara.data.questions import evenly, read_questions

            questions = evenly(read_questions(config.questions, options.split or None), statistics["limit"])
            fusion = weigh_checkpoint(config, names, questions, recipe, Path(scratch))
            print(f"{output}: CHECKPOINT with {formula(fusion)}, from statistics of the scores")
    return 0


def formula(fusion: Fusion) -> str:
    """The fused score as a formula."""
    return "z = " + " + ".join(f"{weight:.4g} · {name}" for name, weight in fusion.weights.items())


def report(fitted: "Fitted") -> str:
    """What was fitted, in a few lines."""
    lines = [f"  {name}: standard deviation {scale:.4g}" for name, scale in fitted.scales.items()]
    lines.append(
        f"  cross-entropy {fitted.before:.3f} -> {fitted.after:.3f} nats a question, {fitted.questions} questions; of "
        f"{fitted.without_help:.0%} no row that was read helps, and they have no part in it"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    command_line(main)
