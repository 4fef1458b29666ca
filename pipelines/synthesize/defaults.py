"""Defaults of the settings that depend on where the model runs."""

ENDPOINT_DEFAULTS = {
    "model_name": "",
    "key_variable": "OPENAI_API_KEY",
    "temperature": 0.0,
    "no_system_role": False,
    "concurrency": 16,
    "timeout": 120.0,
    "tries": 8,
    "retry_seconds": 1.0,
    "requests_per_minute": 0.0,
    "tokens_per_minute": 0.0,
    "price_prompt": 0.0,
    "price_reply": 0.0,
    "cache": "",
}
FOLDER_DEFAULTS = {"device": "cpu", "dtype": "bfloat16", "batch_tokens": 16384, "copies": 0}
