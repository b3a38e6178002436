"""Benchmarks of speed and quality against other trainers; run by hand, not by tests."""
