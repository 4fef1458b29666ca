"""Dataflow: how a corpus job is submitted, and its flex template."""
