"""The adapter for ``torch.utils.data``: a batch sampler whose repeats are fetched anew, and what serves them."""
