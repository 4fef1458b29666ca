"""Settings of an evaluation, checked against each other and against the systems."""

from collections.abc import Sequence

from clara.config.evaluation import Evaluation as Section
from clara.config.tree import Config, Retrieval
from clara.errors import InputError
from clara.storage.manifest import read_manifest
from training.evaluation.systems import Settings, SystemPaths


def check_dense(section: Section, systems: Sequence[SystemPaths]) -> None:
    """Refuse an embedding model that is missing, or that nothing uses.

    Raises:
        InputError: an embedding model is given without need, or needed and not given.
    """
    settings = [read_manifest(system.checkpoint, "CHECKPOINT")["model"] for system in systems]
    fused = any(s.get("fusion", {}).get("weights", {}).get("dense") for s in settings)
    if bool(section.dense_model) != ("dense" in section.baselines or fused):
        raise InputError(
            f"--baselines {','.join(section.baselines) or 'none'} with --dense-model {section.dense_model or 'none'}: "
            "dense needs the folder or URL of an embedding model, as does a system whose fused score weighs dense "
            "vectors, and the model is for them; give both or neither"
        )


def retrieval_of(config: Config) -> Retrieval:
    """How systems are searched in an evaluation: the embedding model, and up to how many rows exactly."""
    chosen = {"dense_model": config.evaluation.dense_model, "exact_rows": config.retrieval.exact_rows}
    return config.retrieval.only_dense().model_copy(update=chosen)


def settings_of(section: Section, retrieval: Retrieval) -> Settings:
    """The settings of an evaluation.

    Raises:
        InputError: two options exclude each other.
    """
    if section.retrieval_only and section.num_aligned:
        raise InputError(
            f"--alignment {section.num_aligned} reads documents, and --retrieval-only reads none; leave one of them out"
        )
    if section.retrieval_only and section.num_timed:
        raise InputError(
            f"--timed {section.num_timed} answers questions, and --retrieval-only answers none; leave one of them out"
        )
    generated = section.generate_conditions
    if section.num_generated and (unread := [name for name in generated if name not in section.conditions]):
        if "generate_conditions" in section.model_fields_set:
            raise InputError(
                f"--generate-conditions {unread[0]!r} is not among --conditions {','.join(section.conditions)}; "
                "add it there"
            )
        generated = tuple(name for name in generated if name in section.conditions)
    from clara.index.dense_model import is_endpoint, model_hash

    is_endpoint(retrieval)  # refuses what is for an endpoint where there is none
    dense = model_hash(retrieval) if retrieval.dense_model else ""
    return Settings(
        num_selected=section.num_selected,
        retrieval_only=section.retrieval_only,
        pool_size=section.pool_size,
        max_new_tokens=section.max_new_tokens,
        num_generated=section.num_generated if section.num_generated >= 0 else 10**9,
        generate_conditions=generated,
        conditions=section.conditions,
        baselines=section.baselines,
        dense=dense,
        cross=section.cross,
        num_aligned=section.num_aligned,
        exact_rows=retrieval.exact_rows,
        num_timed=section.num_timed,
    )
