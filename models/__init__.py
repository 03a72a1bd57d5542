"""Torch rankers over jagged histories, their metrics, evidence and registry."""
