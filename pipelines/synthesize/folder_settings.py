"""Where a model in a folder is, and how it is run."""

from typing import Any

from clara.config.synthesis import Folder
from clara.model.backbone_files import tokenizer_hash, weights_hash


class FolderSettings(Folder):
    """Section synthesis.folder, with the model's folder and device and what section synthesis says of each request."""

    path: str
    device: str
    max_reply_tokens: int
    template_arguments: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """What determines replies, to the last bit of a sum."""
        return {
            "weights": weights_hash(self.path),
            "tokenizer": tokenizer_hash(self.path),
            "device": self.device,
            "dtype": self.dtype,
            "max_reply_tokens": self.max_reply_tokens,
            "batch_tokens": self.batch_tokens,
            "template_arguments": self.template_arguments,
        }
