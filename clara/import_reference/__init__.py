"""Converts a checkpoint of the published implementation: python -m clara.import_reference."""
