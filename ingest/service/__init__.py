"""The processes: the collector, the rollup worker, their supervisor; who is given what."""
