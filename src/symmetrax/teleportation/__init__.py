"""Teleportation: searching an orbit and jumping along it."""
