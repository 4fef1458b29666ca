"""Finding documents for a question, and answering it."""
