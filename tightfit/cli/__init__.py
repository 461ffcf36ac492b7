"""The command line: one command per file, one output sink."""
