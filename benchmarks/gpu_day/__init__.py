"""All that a GPU is wanted for, in one command that may be given again."""

import time

# Before all that takes its time to import.
BEGUN = time.monotonic()
