"""Parts of every job: locks, progress, completion, summary page, tracking."""
