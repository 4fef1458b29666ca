"""The language model with its three adapters, prompts, losses, top-k and the training steps."""
