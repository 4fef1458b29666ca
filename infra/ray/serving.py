"""The HTTP service as an application of Ray Serve: each replica is a whole service with a separate model.

`infra/ray/serve.yaml` deploys it. With retrieval.search_shards, search servers hold the rows of the INDEX for all
replicas: the first replica that asks one starts it, and where that replica is lost, the next that asks does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from clara.config.tree import Retrieval
from clara.index.search import OpenIndex
from clara.serving.command import Plan, log_as_json
from clara.serving.metrics import Metrics
from infra.ray.serve_config import SEARCH, flags_of, settings_of
from training.launch.served_index import served
from training.registry.registered_system import registry_of, reports_of, with_registered
from training.registry.resolve import local_checkpoint


def search(retrieval: Retrieval) -> OpenIndex | None:
    """How a replica opens an INDEX."""
    return served(retrieval, owner=True) if retrieval.search_shards else None


class Service:
    """One replica of the service."""

    def __init__(self, flags: Sequence[str]) -> None:
        """Open what the flags of `clara serve` name.

        Raises:
            InputError: see `Plan`.
        """
        plan = Plan.of(flags, local_checkpoint, with_registered, search=search, more=SEARCH)
        metrics = Metrics()
        self._application = plan.app(metrics, registry_of(flags), reports_of(flags))
        log_as_json(metrics)

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application, whose start and end Ray Serve awaits."""
        return self._application

    def check_health(self) -> None:
        """Raise where no request is answered; Ray Serve then replaces the replica.

        Raises:
            RuntimeError: the engine has ended.
        """
        if not self._application.state.engine.ready:
            raise RuntimeError("the engine has ended; the log of this replica has more")


def application(arguments: Mapping[str, Any]) -> Application:
    """The application, from `args` of the file.

    Raises:
        InputError: see `flags_of` and `settings_of`.
    """
    flags = flags_of(arguments)
    settings_of(flags)
    return serve.deployment()(serve.ingress()(Service)).bind(flags)
