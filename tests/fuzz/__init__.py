"""Fuzzing: what arbitrary bytes do to the code that reads them. Each target is a check of one input, which atheris
drives by coverage (`make fuzz`) and `test_corpus.py` replays without it."""
