"""Rankers behind one interface: RankBatch in, row vectors out."""
