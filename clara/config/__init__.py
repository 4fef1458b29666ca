"""The configuration tree: typed sections, defaults, loading and overrides."""
