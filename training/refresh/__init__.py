"""Re-encoding MEMORY while training runs: python -m training.refresh runs one job again."""
