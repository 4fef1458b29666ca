"""A service that follows an alias: promotion and roll-back reach it, and a MEMORY that is gone does not."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import mlflow
from fastapi.testclient import TestClient

from clara.config.serving import Serving
from clara.serving.app import make_app
from clara.serving.command import parser
from clara.serving.engine import Engine
from clara.serving.follow import Follower
from clara.serving.sources import Sources
from tests.helpers.evaluation_world import World
from tests.helpers.registry import MODEL, evaluation, own_world, promotion, registration, store, world
from training import promote, register
from training.registry.registered_system import with_registered
from training.registry.resolve import local_checkpoint

__all__ = ["evaluation", "own_world", "store", "world"]  # fixtures


def test_promotion_and_rollback_reach_a_service(own_world: World, evaluation: Path, store: str, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    shutil.copytree(own_world.memory, memory)
    gone = dataclasses.replace(own_world, memory=memory)
    assert register.main(registration(own_world, evaluation, store, "before")) == 0
    assert register.main(registration(gone, evaluation, store, "after")) == 0
    assert promote.main(promotion(store, "1")) == 0

    words = ["--model", f"models:/{MODEL}@champion", "--tracking-uri", store]

    def parse() -> tuple[Any, list[str]]:
        flags = with_registered(words)
        return parser().parse_args(flags), flags

    sources = Sources(parse, local_checkpoint, pinned=True)
    first = sources.find()
    assert first.identity == sources.find().identity
    parts: dict[str, Follower] = {}

    def follow(engine: Engine, metrics: Any) -> Follower:
        parts["follower"] = Follower(engine, sources.find, first, metrics, 3600.0)
        return parts["follower"]

    with TestClient(make_app(first.open(), Serving(), follow=follow)) as client:

        def served() -> dict[str, Any]:
            parts["follower"].look()
            found: dict[str, Any] = client.get("/health/ready").json()["follow"]
            return found

        assert served()["serving"] == first.name
        assert promote.main(promotion(store, "2")) == 0
        assert str(own_world.trained) in served()["serving"]
        assert client.post("/v1/answers", json={"question": "Who?"}).status_code == 200
        assert promote.main(["--name", MODEL, "--rollback", "--tracking-uri", store]) == 0
        assert served() == {**served(), "serving": first.name, "error": ""}

        # Version 2 again, whose MEMORY is gone by now.
        shutil.rmtree(memory)
        mlflow.MlflowClient(store).set_registered_model_alias(MODEL, "champion", "2")
        state = served()
        assert state["serving"] == first.name
        assert "no manifest.json" in state["error"]
        assert client.post("/v1/answers", json={"question": "Who?"}).status_code == 200
