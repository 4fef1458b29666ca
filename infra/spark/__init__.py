"""Spark: how a corpus job is submitted to a cluster."""
