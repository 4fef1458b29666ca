"""File names of a published checkpoint."""

CONFIG, ADAPTERS, LAYERS = "config.json", "adapters.pth", "decoder_first_last_layers.pth"
