"""Names of the three adapters."""

COMPRESSOR, QUERY_REASONER, GENERATOR = ROLES = ("compressor", "query_reasoner", "generator")
