"""Attention to samples: badly fitted ones come again, well-fitted ones are pruned, at a fixed number of updates."""
