"""Batch-attention inside trainers that have their own training loop; one module for each trainer."""
