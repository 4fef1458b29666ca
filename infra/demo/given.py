"""What a run of the demo is given, and its size."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clara.config.load import load
from infra.steps import ROOT, relative

CONFIG = relative(ROOT / "infra" / "configs" / "demo.toml")
QUICK_DOCUMENTS = 500  # a smaller corpus gets a quick run
DTYPE = "dtype.txt"  # in the folder of the run


@dataclass(frozen=True)
class Size:
    """How much is measured and trained, so that a run takes minutes on two slow cores.

    Attributes:
        questions: of each split that are evaluated.
        generated: of those, how many are also answered in words.
        overrides: of the configuration's joint stage.
    """

    questions: int
    generated: int
    overrides: tuple[str, ...] = ()


WHOLE = Size(questions=32, generated=12)
QUICK = Size(
    questions=8,
    generated=3,
    overrides=(
        "joint.steps=6",
        "joint.compressor_steps=2",
        "joint.refresh.start_step=2",
        "joint.refresh.delta_steps=3",
    ),
)


@dataclass(frozen=True)
class Given:
    """What a user brings instead of the defaults; empty: the default.

    Attributes:
        sets: overrides of the configuration, of the training stages.
    """

    corpus: str = ""
    backbone: str = ""
    start: str = ""
    config: str = CONFIG
    dtype: str = ""
    sets: tuple[str, ...] = ()

    @property
    def asks_processor(self) -> bool:
        """Whether the processor decides the type: neither the user nor a configuration of theirs does."""
        return not self.dtype and self.config == CONFIG

    def resolved_dtype(self, remembered: Path) -> str:
        """The type of the language model: of the user, else of their configuration, else of the processor.

        Args:
            remembered: file with the answer of an earlier run.
        """
        if not self.asks_processor:
            return self.dtype or load(self.config).backbone.dtype
        if remembered.is_file():
            return remembered.read_text(encoding="utf-8").strip()
        # In another process: importing torch takes seconds and 300 MB, which this process would hold until it ends.
        question = "from clara.model.precision import multiplies_bfloat16 as f; print('bfloat16' if f() else 'float32')"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", question], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
