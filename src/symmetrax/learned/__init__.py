"""Optimizers that are networks."""
