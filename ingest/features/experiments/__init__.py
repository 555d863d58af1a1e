"""Experiments: who is given which variant, what may be changed when, and what came of it."""
