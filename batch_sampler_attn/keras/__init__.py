"""Batch-attention in Keras 3, on its torch and jax backends: ``BatchAttention(model, k=1.2).fit(x, y, epochs=10)``."""

try:
    import keras as keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise ModuleNotFoundError(
        "batch_sampler_attn.keras needs Keras 3, which is not installed: pip install 'batch-sampler-attn[keras]'",
        name="keras",
    ) from error

from batch_sampler_attn.keras.attention import BatchAttention

__all__ = ["BatchAttention"]
