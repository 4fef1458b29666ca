"""A system on one's own corpus, beside BM25, dense retrieval and standard RAG: quality, latency, bytes."""
