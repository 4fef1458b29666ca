"""Beam workers of a Spark node: python -m pipelines.worker_pool."""
