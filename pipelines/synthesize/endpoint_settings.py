"""Where an OpenAI-compatible endpoint is, and how to ask it."""

import json
from dataclasses import dataclass
from typing import Any

from pipelines.synthesize.prompts import Request


@dataclass(frozen=True)
class EndpointSettings:
    """Where and how to ask; see the command's flags. Holds the name of the key's variable, never the key."""

    url: str
    name: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_reply_tokens: int = 1024
    extra_body: str = "{}"
    system_role: bool = True
    concurrency: int = 16
    timeout_seconds: float = 120.0
    tries: int = 8
    retry_seconds: float = 1.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    def identity(self) -> dict[str, Any]:
        """What determines replies. Not the URL: the same model may move."""
        return {
            "name": self.name,
            "temperature": self.temperature,
            "max_reply_tokens": self.max_reply_tokens,
            "extra_body": json.loads(self.extra_body),
            "system_role": self.system_role,
        }

    def body(self, request: Request) -> dict[str, Any]:
        """What is sent; a null among the extra fields takes the field out."""
        if request.system and self.system_role:
            messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
        else:
            messages = [{"role": "user", "content": f"{request.system}\n\n{request.user}".strip()}]
        body = {
            "model": self.name,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_reply_tokens,
        }
        return {key: value for key, value in (body | json.loads(self.extra_body)).items() if value is not None}
