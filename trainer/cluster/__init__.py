"""Runs on the machines of a cluster: a worker there, and a relay here that keeps the run's folder up to date."""
