"""Batch-attention inside trainers whose training loop is not the user's; one module for each trainer."""
