"""What `ingest COMMAND` does, a file per command; COMMAND_ACTION where an action of it is a lot of work."""
