"""Attention to samples: badly fitted ones come again, well-fitted ones are pruned, at a fixed number of updates."""

from batch_sampler_attn.samples.attention import SampleAttention
from batch_sampler_attn.summary import SampleSummary

__all__ = ["SampleAttention", "SampleSummary"]
