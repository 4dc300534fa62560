"""The adapter for ``torch.utils.data``: a batch sampler that fetches repeated batches again, and its helpers."""
