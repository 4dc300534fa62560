"""The tables of README.md and of the documentation, made from the raw records."""
