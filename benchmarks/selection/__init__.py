"""Which samples are worth an update? Arms that choose them, at exactly the same number of updates."""
