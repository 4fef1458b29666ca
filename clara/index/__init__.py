"""INDEX: FAISS over the keys of one MEMORY, building and searching."""
