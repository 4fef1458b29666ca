"""MEMORY: compressed chunks in shards, their codecs, versions and updates."""
