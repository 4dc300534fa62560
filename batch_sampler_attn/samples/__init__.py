"""Attention to samples: badly fitted ones are repeated, well-fitted ones pruned, at a fixed number of updates."""
