"""Where an OpenAI-compatible endpoint is, and how to ask it."""

import json
from typing import Any

from clara.config.synthesis import Endpoint
from pipelines.synthesize.prompts import Request


class EndpointSettings(Endpoint):
    """Section synthesis.endpoint, with the endpoint's URL and what section synthesis says of each request."""

    url: str
    max_reply_tokens: int
    extra_body: str

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
