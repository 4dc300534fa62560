"""Batch-attention in Lightning, of either package: ``Trainer(callbacks=[BatchAttention(k=1.2)])``."""

from batch_sampler_attn.lightning.callback import BatchAttention

__all__ = ["BatchAttention"]
