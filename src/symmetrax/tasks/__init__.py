"""Optimization tasks and families of them."""
