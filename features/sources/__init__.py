"""One file a public data set: its own files to canonical raw events."""
