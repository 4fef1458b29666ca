"""From corpus files to chunks: splits, readers, filters, chunking, duplicates, dead letters."""
