"""`make chaos`: everything that can die or fail, from a seed, under load. bench/README.md says more."""
