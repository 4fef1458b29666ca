"""Beam transforms over the plain functions of `pipelines.corpus`. Nothing else there imports Beam."""
