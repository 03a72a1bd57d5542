"""Spark jobs: raw events to sessions, surfaces, histories and mergeable relevance statistics."""
