"""Metrics: a file each."""
