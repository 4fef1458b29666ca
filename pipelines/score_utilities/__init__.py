"""UTILITIES of questions: python -m pipelines.score_utilities."""
