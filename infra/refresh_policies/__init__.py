"""Refresh policies compared: python -m infra.refresh_policies."""
