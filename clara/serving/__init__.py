"""The HTTP service of a trained system."""
