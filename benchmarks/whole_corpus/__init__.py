"""Retrieval over a whole corpus by every source and by the fused score, before any training of the reader."""
