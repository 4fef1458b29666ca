"""Names of the counts of a corpus job."""

# The stages of a job check equations between these counts.
RECORDS, DOCUMENTS, BEYOND_LIMIT, CHUNKS, TRUNCATED, SPLIT = (
    "records read",
    "documents",
    "documents beyond limit",
    "chunks",
    "chunks truncated",
    "documents split",
)
# Extent of truncation and splitting, in compressed tokens: a title or an overlap counts in each chunk.
DOCUMENTS_TRUNCATED, TRUNCATED_TOKENS, CUT_TOKENS, SPLIT_TOKENS = (
    "documents truncated",
    "tokens of chunks truncated",
    "title tokens cut off",
    "tokens of documents split",
)
UNIQUE, DUPLICATES = "unique chunks", "duplicate chunks dropped"
