"""What a training step reads: documents, questions, candidates, memory."""
