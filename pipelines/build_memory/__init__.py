"""Compresses a corpus into MEMORY: python -m pipelines.build_memory."""
