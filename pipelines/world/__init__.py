"""A small generated world to learn in: python -m pipelines.world."""
