"""Which ways of choosing samples pay on which data? Arms at the same number of updates, each with many seeds."""
