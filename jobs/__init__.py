"""The command line and one file a verb; the only place that reads argv, clock, paths and session."""
