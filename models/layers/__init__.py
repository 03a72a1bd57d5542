"""Building blocks of the rankers."""
