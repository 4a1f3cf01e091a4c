"""How fast and how exact the merge is, side by side with a plain implementation of the paper's algorithm."""
