"""The method on published questions, beside baselines and controls: python -m infra.evidence."""
