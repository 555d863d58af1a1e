"""From the journal into the table, exactly once: ledger row and COPY in one transaction; partitions."""
