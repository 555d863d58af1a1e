"""Statistics: what is asked, where it is read, and the answer."""
