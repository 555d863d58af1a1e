"""Statistics: queries, the transactions they are read in, and the answers."""
