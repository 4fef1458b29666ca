"""Names of what a corpus job counts; the invariants tie the counts together."""

# What is counted; the invariants tie them together.
RECORDS, DOCUMENTS, BEYOND_LIMIT, CHUNKS, TRUNCATED, SPLIT = (
    "records read",
    "documents",
    "documents beyond limit",
    "chunks",
    "chunks truncated",
    "documents split",
)
# What truncation and splitting touched, in tokens as they are compressed: a title or an overlap counts in each chunk.
DOCUMENTS_TRUNCATED, TRUNCATED_TOKENS, CUT_TOKENS, SPLIT_TOKENS = (
    "documents truncated",
    "tokens of chunks truncated",
    "title tokens cut off",
    "tokens of documents split",
)
UNIQUE, DUPLICATES = "unique chunks", "duplicate chunks dropped"
