"""Sections of the configuration for EXAMPLES that a language model makes out of a corpus."""

import json
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from clara.config.refresh import YEAR_SECONDS
from clara.config.section import Section

Kind = Literal["simple", "complex", "paraphrase"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Examples of a chunk, in their order: simple questions, complex ones, the text in other words."""
Coverage = Literal["required", "counted", "off"]
COVERAGES: tuple[Coverage, ...] = get_args(Coverage)
_FIXED = {"model", "messages", "stream", "n"}  # fields of a request that are ours


class Endpoint(Section):
    """How an endpoint is asked, where synthesis.model is a URL. Holds the name of the key's variable, never the key."""

    name: str = Field("", description="name of the model there; empty: the only one that it offers")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key, where the workers run"
    )
    temperature: float = Field(0.0, ge=0, description="of sampling")
    system_role: bool = Field(
        True, description="send the system's words as such; off: in front of the user's, for models without that role"
    )
    concurrency: int = Field(16, ge=1, description="requests at once")
    timeout_seconds: float = Field(120.0, gt=0, le=YEAR_SECONDS, description="seconds for one request, at most")
    tries: int = Field(
        8, ge=1, description="of a request that meets 408, 409, 429, 5xx, a time-out or a broken connection"
    )
    retry_seconds: float = Field(
        1.0,
        ge=0,
        le=YEAR_SECONDS,
        description="before the second try; doubles up to 60, longer where the endpoint says so",
    )
    requests_per_minute: float = Field(
        0.0, ge=0, description="at most, tries included, evenly spaced; 0: as many as are answered"
    )
    tokens_per_minute: float = Field(0.0, ge=0, description="prompts and replies, at most; 0: no limit")
    price_prompt: float = Field(0.0, ge=0, description="of a million prompt tokens, in your currency")
    price_reply: float = Field(0.0, ge=0, description="of a million reply tokens")
    cache: str = Field(
        "",
        description="folder of replies that were paid, on a disk of the machine that asks; empty: the output, or "
        "where that is a URL a folder of CLARA_CACHE",
    )


class Folder(Section):
    """How a language model is run in the job, where synthesis.model is a folder. Its device is the key device."""

    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="type that it computes in")
    batch_tokens: int = Field(16384, ge=1, description="tokens of a batch, padding and replies included")
    copies: int = Field(
        0, ge=0, description="that work at once, one for each process; 0: on a GPU one, else one for each worker"
    )


class Synthesis(Section):
    """EXAMPLES for stage pretrain by a language model. Chunks are cut as section corpus_job says."""

    model: str = Field(
        "", description="folder of a causal LM with a chat template, or base URL of an OpenAI-compatible endpoint"
    )
    kinds: tuple[Kind, ...] = Field(
        KINDS, min_length=1, description="examples of a chunk, of simple, complex, paraphrase"
    )
    coverage: Coverage = Field(
        "required",
        description="whether questions must cover their chunk: required drops those that don't in the end, counted "
        "counts them, off does not check",
    )
    max_rounds: int = Field(10, ge=0, description="rounds in which missing questions are asked for, at most")
    max_questions: int = Field(24, ge=1, description="questions tried for an example over all rounds, at most")
    attempts: int = Field(2, ge=1, description="prompts for one reply, until it has the form that was asked for")
    max_reply_tokens: int = Field(1024, ge=16, description="of one reply, thoughts included")
    prompts: str = Field(
        "", description="folder of your own prompts, files named as in pipelines/synthesize/templates; empty: those"
    )
    extra_body: str = Field(
        "{}",
        description="further fields of each request, as JSON or as a table, null takes one out; of a folder's model "
        "chat_template_kwargs alone, where enable_thinking defaults to false",
    )
    tokenizer: str = Field(
        "",
        description="folder of the LM whose compressor will read the chunks; they are cut by its tokens; empty: the "
        "model's folder; for a URL, tokens are estimated: a word has one for every four letters begun, a mark one",
    )
    num_shards: int = Field(0, ge=0, description="pieces that are finished one by one; 0: about 64 chunks each")
    endpoint: Endpoint = Endpoint()
    folder: Folder = Folder()

    @field_validator("kinds")
    @classmethod
    def _in_order(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        return tuple(kind for kind in KINDS if kind in kinds)

    @field_validator("extra_body", mode="before")
    @classmethod
    def _as_json(cls, given: Any) -> Any:
        """The fields as JSON text with sorted keys."""
        try:
            fields = json.loads(given) if isinstance(given, str) else given
            text = json.dumps(fields, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"""not JSON ({error}); expected an object, as '{{"top_p": 0.9}}'""") from error
        if not isinstance(fields, dict):
            raise ValueError("""expected a JSON object, as '{"top_p": 0.9}'""")
        if taken := sorted(_FIXED & fields.keys()):
            raise ValueError(f"{', '.join(taken)} can't be set; leave it out")
        return text

    @property
    def at_endpoint(self) -> bool:
        """Whether the model is asked at an endpoint."""
        return "://" in self.model
