"""Alignment of two networks over the groups of their symmetries, with NumPy in double precision."""
