"""Training against a whole corpus, phase by phase."""
