"""How networks learn to optimize."""
