"""Section of the configuration for answering: one question from the command line, or many over HTTP."""

from pydantic import Field

from clara.config.refresh import YEAR_SECONDS
from clara.config.section import Section


class Serving(Section):
    """How a system answers a question, and what the HTTP service takes."""

    num_selected: int = Field(5, ge=1, description="K, passages that an answer is read from")
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    verify: bool = Field(False, description="read every byte of the MEMORY and check its sha256 first; else sizes only")
    follow: bool = Field(
        False,
        description="look for a newer system (the holder of the alias, a newer MEMORY and INDEX) and let it take over",
    )
    follow_seconds: float = Field(30.0, gt=0, le=YEAR_SECONDS, description="between two looks for a newer system")
    host: str = Field("127.0.0.1", description="address that the service listens at; 0.0.0.0: every one")
    port: int = Field(8000, ge=0, le=65535, description="port of the service; 0: any free one")
    model_name: str = Field("clara", min_length=1, description="name of the system for OpenAI-compatible clients")
    key_variable: str = Field(
        "CLARA_API_KEY",
        min_length=1,
        description="environment variable with the key that requests below /v1/ must bear; not set: none is asked for",
    )
    max_question_characters: int = Field(4000, ge=1, description="longest question")
    max_questions: int = Field(32, ge=1, description="questions of one search")
    max_context_characters: int = Field(
        16_000, ge=0, description="of a chat, all messages before the question together"
    )
    max_passages: int = Field(100, ge=1, description="passages of one answer, or of one question of a search")
    max_filtered_rows: int = Field(
        20_000, ge=1, description="rows that pass a filter by documents and sources; all of them are scored"
    )
    max_answer_tokens: int = Field(256, ge=1, description="longest answer that a request may ask for")
    max_running: int = Field(8, ge=1, description="answers that are generated together")
    max_waiting: int = Field(64, ge=0, description="requests that wait for their turn; more are refused (429)")
    max_body_bytes: int = Field(1_000_000, ge=1, description="longest body of a request")
    request_seconds: float = Field(
        60.0, gt=0, le=YEAR_SECONDS, description="longest wait for a request's body, and for its answer"
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="how long a connection without requests stays open; longer than clients keep it (5 s for many), as "
        "one that is being closed loses the next request",
    )
    shutdown_seconds: int = Field(
        30, ge=0, description="wait for running requests when the service is stopped; then they end with an error"
    )
