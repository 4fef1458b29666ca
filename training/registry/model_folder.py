"""The folder of a registered model, as MLflow loads it and makes an environment for it."""

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
from clara.own_wheel import NAME, pack_wheel
from training.registry.registration import Registration

MODEL = "model"
"""Folder of the run's artifacts that holds the model."""
WHEELS = "wheels"
"""Folder of the model that holds this package's wheel."""
_WHEEL = re.compile(r"clara_rag-(?P<version>\d[^-]*)-py3-none-any\.whl")
_NAMES = {"s3://": "s3fs", "gs://": "gcsfs"}


def requirements(registration: Registration) -> list[str]:
    """What this package needs for serving: its pinned dependencies and MLflow, without asking MLflow to guess them.

    From the extras only what opens the embedding model and the artefacts of this registration.
    """
    needed = importlib.metadata.requires(NAME) or []
    core = [line for line in needed if "extra ==" not in line]
    names = [registration.memory.name, registration.backbone]
    names += [] if registration.index is None else [registration.index.name]
    wanted = {package for scheme, package in _NAMES.items() if any(name.startswith(scheme) for name in names)}
    if registration.dense.dense_model:
        wanted.add("openai" if is_endpoint(registration.dense) else "sentence-transformers")
    extras = {line.partition(";")[0].strip() for line in needed if re.split(r"[=;\[ ]", line)[0] in wanted}
    return [*core, *sorted(extras), f"mlflow=={importlib.metadata.version('mlflow')}"]


def check_wheel(wheel: Path | None) -> None:
    """Refuse a wheel of another package.

    Raises:
        InputError: by its name, it is none of this one.
    """
    if wheel is not None and not _WHEEL.fullmatch(wheel.name):
        raise InputError(f"--wheel {wheel}: expected one of this package, as clara_rag-0.1.0-py3-none-any.whl")


def save_model(
    folder: Path, run_id: str, registration: Registration, config: Mapping[str, Any], wheel: Path | None = None
) -> None:
    """Write the model as MLflow loads it: with the code that it imports, and with the wheel for a new environment.

    pip reads a requirement's path from the working directory, which a docker build has elsewhere, but the folder of
    `--find-links` from beside the file of requirements.

    Args:
        folder: does not exist.
        run_id: of the run that it belongs to.
        registration: what it is made of.
        config: what the served model reads.
        wheel: of this package; None: it is packed as it is here.
    """
    import mlflow
    from mlflow.models import Model

    from training.registry import served_model
    from training.registry.signature import SIGNATURE

    # The wheel's version names its sources, and is never the one that is installed here.
    logging.getLogger("mlflow.utils.requirements_utils").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="wheel-") as packed:
        own = wheel or pack_wheel(Path(packed))
        named = _WHEEL.fullmatch(own.name)
        assert named is not None, "see check_wheel"
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=Model(artifact_path=MODEL, run_id=run_id),
            python_model=served_model.code_path(),
            code_paths=[str(Path(clara.__file__).parent)],
            artifacts={served_model.CHECKPOINT: str(registration.checkpoint.folder.resolve())},
            model_config=dict(config),
            pip_requirements=[f"--find-links {WHEELS}", f"{NAME}=={named['version']}", *requirements(registration)],
            signature=SIGNATURE,
        )
        (folder / WHEELS).mkdir()
        shutil.copy(own, folder / WHEELS)
