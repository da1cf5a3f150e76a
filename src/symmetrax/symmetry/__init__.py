"""Symmetries: transformations of parameters that leave a loss unchanged."""
