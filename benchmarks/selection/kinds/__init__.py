"""Which way of leaving samples out pays on which kind of data, each at its own learning rate."""
