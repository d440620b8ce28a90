"""What a model is and how it computes: configuration, masks, layers, cache, generation, checkpoints."""
