"""Metrics over samples and held-out data."""
