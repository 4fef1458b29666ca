"""Shares of a Ray cluster: cores and GPUs of ranks and refreshes, and errors if the cluster has too few."""

from ray.train import ScalingConfig

from clara.config.tree import Config
from clara.errors import InputError
from training.refresh.policy import policy_of
from training.run.checks import encodes_again


def cpus_of_rank(config: Config, cluster_cpus: float) -> float:
    """Cores that Ray reserves for a rank.

    Raises:
        InputError: the cluster has too few for ranks and refresh together, which would wait for ever.
    """
    launch, refresh = config.launch, config.joint.refresh
    aside = (
        refresh.num_workers * refresh.num_cpus if policy_of(refresh).makes_versions else 0.0
    ) + config.retrieval.search_shards * config.retrieval.search_cpus
    each = launch.cpus_per_worker or min(1.0, (cluster_cpus - aside) / launch.num_workers)
    if each <= 0 or each * launch.num_workers + aside > cluster_cpus + 1e-6:
        raise InputError(
            f"launch.num_workers is {launch.num_workers}, cpus_per_worker {launch.cpus_per_worker}, refreshes "
            f"(joint.refresh.num_workers, num_cpus) and search servers {aside}: "
            f"more than the cluster's {cluster_cpus:g} cores; lower one of them"
        )
    return each


def check_room(config: Config, resources: dict[str, float]) -> None:
    """Refuse a refresh that would wait for room until its time is up.

    Raises:
        InputError: the whole cluster has not what is asked for it.
    """
    if not encodes_again(config):
        return
    for name, resource, what in (("num_cpus", "CPU", "cores"), ("num_gpus", "GPU", "GPUs")):
        refresh, found = config.joint.refresh, resources.get(resource, 0.0)
        wanted, several = (
            getattr(refresh, name),
            f" for each of {refresh.num_workers}" if refresh.num_workers > 1 else "",
        )
        if refresh.num_workers * wanted > found:
            raise InputError(
                f"joint.refresh.{name} is {wanted:g}{several}, the cluster has {found:g} {what}; add a node that has "
                f"them, or lower joint.refresh.{name}"
            )


def scaling(config: Config, resources: dict[str, float]) -> ScalingConfig:
    """Ranks and their shares of a cluster.

    Raises:
        InputError: the cluster has fewer CPUs or GPUs than the configuration asks for.
    """
    launch = config.launch
    if (
        launch.gpu
        and resources.get("GPU", 0)
        < launch.num_workers + config.joint.refresh.num_workers * config.joint.refresh.num_gpus
    ):
        raise InputError(
            f"launch.gpu is true with {launch.num_workers} workers, the cluster has {resources.get('GPU', 0):g} GPUs; "
            "run where there is one for each, lower launch.num_workers, or set launch.gpu=false"
        )
    check_room(config, resources)
    share = {"CPU": cpus_of_rank(config, resources.get("CPU", 0.0))} | ({"GPU": 1.0} if launch.gpu else {})
    return ScalingConfig(num_workers=launch.num_workers, use_gpu=launch.gpu, resources_per_worker=share)
