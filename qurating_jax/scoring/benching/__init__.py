"""The parts of `qurating bench annotate`: what rating costs here, beside PyTorch's `transformers` where it is there."""
