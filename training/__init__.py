"""Ray Train and DeepSpeed around the steps of `clara`, tracking, evaluation and promotion."""
