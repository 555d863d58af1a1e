"""Experiments: who is given which variant, what may be changed when, and the results."""
