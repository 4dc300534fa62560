"""All that a GPU is wanted for, in one command that may be given again."""
