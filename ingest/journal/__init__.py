"""The durable log between request and database: group commit, segments, recovery, and accounting."""
