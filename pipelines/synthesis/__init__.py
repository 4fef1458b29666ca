"""What `pipelines.synthesize` consists of: prompts, the questions and paraphrases of a chunk, the model behind them, and the Beam job."""
