"""Retrieval that learns from answers: memory tokens, a differentiable top-k and one loss (CLaRa, arXiv 2511.18659)."""

__version__ = "0.1.0"
