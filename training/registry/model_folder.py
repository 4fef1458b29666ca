"""The folder of a registered model, as MLflow loads it and makes an environment for it."""

import atexit
import functools
import importlib.metadata
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clara
from clara.errors import InputError
from clara.index.dense_model import is_endpoint
from clara.own_wheel import build_wheel
from training.registry.registration import Registration

MODEL = "model"
"""Folder of the run's artifacts that holds the model."""
WHEELS = "wheels"
"""Folder of the model that holds this package's wheel."""
PACKAGE = "clara-rag"
_WHEEL = re.compile(r"clara_rag-(?P<version>\d[^-]*)-py3-none-any\.whl")
_PACKAGES = {"s3://": "s3fs", "gs://": "gcsfs"}


def requirements(registration: Registration) -> list[str]:
    """What this package needs for serving: its pinned dependencies and MLflow, without asking MLflow to guess them.

    From the extras only what opens the embedding model and the artefacts of this registration.
    """
    needed = importlib.metadata.requires(PACKAGE) or []
    core = [line for line in needed if "extra ==" not in line]
    places = [str(registration.memory), str(registration.index or ""), registration.backbone]
    wanted = {package for scheme, package in _PACKAGES.items() if any(p.startswith(scheme) for p in places)}
    if registration.dense.dense_model:
        wanted.add("openai" if is_endpoint(registration.dense) else "sentence-transformers")
    extras = {line.partition(";")[0].strip() for line in needed if re.split(r"[=;\[ ]", line)[0] in wanted}
    return [*core, *sorted(extras), f"mlflow=={importlib.metadata.version('mlflow')}"]


@functools.cache
def own_wheel() -> Path:
    """A wheel of this checkout, built once by a process and removed with it.

    Raises:
        InputError: none can be built.
    """
    folder = Path(tempfile.mkdtemp(prefix="clara-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build_wheel(folder, named_by_content=True)


def check_wheel(wheel: Path | None) -> None:
    """Refuse a wheel of another package.

    Raises:
        InputError: by its name, it is none of this one.
    """
    if wheel is not None and not _WHEEL.fullmatch(wheel.name):
        raise InputError(f"--wheel {wheel}: expected one of this package, as clara_rag-0.1.0-py3-none-any.whl")


def save_model(folder: Path, run_id: str, registration: Registration, config: Mapping[str, Any], wheel: Path) -> None:
    """Write the model as MLflow loads it: with the code that it imports, and with the wheel for a new environment.

    pip reads a requirement's path from the working directory, which a docker build has elsewhere, but the folder of
    `--find-links` from beside the file of requirements.
    """
    import mlflow
    from mlflow.models import Model

    from training.registry import served_model
    from training.registry.signature import SIGNATURE

    named = _WHEEL.fullmatch(wheel.name)
    assert named is not None, "see check_wheel"
    # The wheel's version names its sources, and is never the one that is installed here.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=Model(artifact_path=MODEL, run_id=run_id),
        python_model=served_model.code_path(),
        code_paths=[str(Path(clara.__file__).parent)],
        artifacts={served_model.CHECKPOINT: str(registration.checkpoint.resolve())},
        model_config=dict(config),
        pip_requirements=[f"--find-links {WHEELS}", f"{PACKAGE}=={named['version']}", *requirements(registration)],
        signature=SIGNATURE,
    )
    (folder / WHEELS).mkdir()
    shutil.copy(wheel, folder / WHEELS)
