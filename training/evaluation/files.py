"""Names of an EVALUATION's files that other commands read."""

REPORT, PER_QUESTION = "report.json", "per_question.parquet"
