"""Candidates read off the program of a loss: which axes of which arrays meet in one hidden space."""
