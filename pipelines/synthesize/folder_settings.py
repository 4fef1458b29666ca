"""Where a model in a folder is, and how it is run."""

from dataclasses import dataclass
from typing import Any

from clara.model.backbone_files import tokenizer_hash, weights_hash


@dataclass(frozen=True)
class FolderSettings:
    """Which model, and how it is run. See the command's flags."""

    path: str
    device: str
    dtype: str
    max_reply_tokens: int
    batch_tokens: int
    template_arguments: tuple[tuple[str, Any], ...] = ()

    def identity(self) -> dict[str, Any]:
        """What determines replies, to the last bit of a sum."""
        return {
            "weights": weights_hash(self.path),
            "tokenizer": tokenizer_hash(self.path),
            "device": self.device,
            "dtype": self.dtype,
            "max_reply_tokens": self.max_reply_tokens,
            "batch_tokens": self.batch_tokens,
            "template_arguments": dict(self.template_arguments),
        }
