"""User segments, relevance bounds and keep/boost masks."""
