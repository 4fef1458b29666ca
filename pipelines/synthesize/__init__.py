"""Questions and paraphrases for a corpus by a language model: python -m pipelines.synthesize."""
