"""The commands of `ingest`, one file each; a large action of a command has its own file, COMMAND_ACTION."""
