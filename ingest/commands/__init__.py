"""What `ingest COMMAND` does, one file a command or two. Each `run` returns the exit code."""
