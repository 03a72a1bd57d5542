"""Rankers behind one interface: RankBatch in, row vectors and stream summaries out (`base`), by name (`build`)."""
