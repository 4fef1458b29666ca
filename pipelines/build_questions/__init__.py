"""QUESTIONS from published files or from a corpus: python -m pipelines.build_questions."""
