"""Pages, and what makes those that follow from the code."""
