"""From the journal into the table, once: ledger row and COPY in one transaction; partitions."""
