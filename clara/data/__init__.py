"""Records of a corpus, questions, examples and utilities, as files and as values."""
