"""Batch-attention in transformers: ``class MyTrainer(BatchAttentionMixin, Trainer)``."""

from batch_sampler_attn.transformers.mixin import BatchAttentionMixin

__all__ = ["BatchAttentionMixin"]
