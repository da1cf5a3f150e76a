"""Symmetries that nobody wrote down: read off gradients of a loss, and certified."""
