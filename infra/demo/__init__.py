"""The whole system on a small real corpus: python -m infra.demo."""
