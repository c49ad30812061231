"""A module for each library: `CASES`, and what writes and loads them. Libraries are imported inside the functions alone."""
