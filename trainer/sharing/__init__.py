"""Runs to show to others: a report as one HTML file, and a folder to publish with a model card. Torch-free."""
