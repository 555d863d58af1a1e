"""From the ledger to aggregates and KPIs: tallies, buckets, sketches, identities, rebuild and verify."""
