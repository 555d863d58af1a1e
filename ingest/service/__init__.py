"""The processes: the collector, the rollup worker and their supervisor, and how their parts are wired together."""
