"""MLflow: run logs, evaluations, registered models."""
