"""The compress job on one machine."""
