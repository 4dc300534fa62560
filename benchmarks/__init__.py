"""Measurements behind the claims of this project, and the scripts that repeat them."""
