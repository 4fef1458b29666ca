"""Configurations that are run, cluster manifests, and the demo."""
