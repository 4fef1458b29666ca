"""Settings of a joint run that can't work, or do nothing: said before it begins, and not by its first refresh."""

import logging
import os
from pathlib import Path

from clara.config.load import require
from clara.config.tree import Config
from clara.errors import InputError
from clara.storage.paths import is_url, require_local
from training.refresh.policy import policy_of
from training.run.recipe import JOB_VARIABLE, plan

logger = logging.getLogger(__name__)


def encodes_again(config: Config) -> bool:
    """Whether a run makes versions of MEMORY."""
    refresh = config.joint.refresh
    return config.joint.train_compressor and (policy_of(refresh).makes_versions or refresh.final)


def check_settings(config: Config) -> None:
    """Refuse settings that contradict each other, and warn of those that nothing comes of.

    Raises:
        InputError: MEMORY is to be encoded again, and no compressor trains, or by several processes without Ray, or no
            snapshot would ever be taken of one that has.
    """
    joint = config.joint
    refresh = joint.refresh
    makes_versions = policy_of(refresh).makes_versions
    if makes_versions and not joint.train_compressor:
        raise InputError(
            f"joint.refresh.policy is {refresh.policy!r}, joint.train_compressor false: every version would be what "
            "MEMORY is already; "
            "set joint.train_compressor=true, or joint.refresh.policy=none"
        )
    if refresh.num_workers > 1 and config.launch.launcher == "local":
        raise InputError(
            f"joint.refresh.num_workers is {refresh.num_workers}, launcher local: beside one torch process there is "
            "one that encodes; set it to 1, or "
            "launch.launcher=ray"
        )
    if makes_versions and not (refresh.start_step or refresh.every_steps or refresh.trigger_cosine):
        raise InputError(
            f"joint.refresh.policy is {refresh.policy!r}, start_step, every_steps and trigger_cosine are 0: the only "
            "snapshot would be of the compressor "
            "that made MEMORY; set joint.refresh.every_steps, or policy=none"
        )
    if makes_versions and refresh.start_step > joint.steps:
        logger.warning(
            "joint.refresh.start_step is %d, joint.steps %d: no refresh will take place; lower start_step",
            refresh.start_step,
            joint.steps,
        )
    if joint.denominator in ("helpful", "frequency") and not config.utilities:
        raise InputError(
            f"joint.denominator is {joint.denominator!r}: rows that help training questions are known from UTILITIES; "
            "give utilities (python -m pipelines.score_utilities), or set denominator to others, targets or all"
        )
    trained = {
        "query_reasoner": joint.train_query_reasoner,
        "generator": joint.train_generator,
        "compressor": joint.train_compressor,
    }
    for role, rate in joint.learning_rates.items():
        if not trained[role]:
            logger.warning(
                "joint.learning_rates.%s is %g, joint.train_%s false: the rate is not used", role, rate, role
            )


def check(config: Config) -> None:
    """Refuse what could only fail later.

    Raises:
        InputError: a path is missing, or relative in a submitted job; launch.gpu is true without a GPU; settings
            contradict each other.
    """
    if config.stage != "joint":
        raise InputError(f"stage is {config.stage!r}; this program makes 'joint', training/pretrain.py the other two")
    joint = config.joint
    searching = joint.from_index and not joint.published_pool and not config.utilities
    require(config, "output", "checkpoint", "questions", "memory", *["index"] * bool(searching or joint.fit_questions))
    plan(config)
    check_settings(config)
    if config.retrieval.search_shards and config.launch.launcher != "ray":
        raise InputError(
            f"retrieval.search_shards is {config.retrieval.search_shards}, launch.launcher "
            f"{config.launch.launcher!r}: search servers are Ray actors; "
            "set launch.launcher=ray, or retrieval.search_shards=0"
        )
    require_local("output", config.output)
    if os.environ.get(JOB_VARIABLE):
        check_submitted(config)


def check_submitted(config: Config) -> None:
    """Refuse relative paths of a submitted job, which runs in another directory.

    Raises:
        InputError: a path that the stage reads or writes is relative.
    """
    own = ("memory", "index", "utilities") if config.stage == "joint" else ("examples", "corpus")
    for name in ("checkpoint", "questions", *own, "output", "backbone.path"):
        value = config.backbone.path if name == "backbone.path" else getattr(config, name)
        if value and not is_url(value) and not Path(value).is_absolute():
            raise InputError(
                f"{name} is {value!r}: a submitted job runs in a copy of the working directory, without what git "
                "ignores, so a relative path "
                "leads nowhere; give an absolute one that every machine sees, or a URL"
            )
    uri = config.tracking.uri
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise InputError(
            f"tracking.uri is {uri!r}: relative, and a submitted job runs elsewhere; give "
            "sqlite:////ABSOLUTE/PATH or a server's URL"
        )
