"""Learned optimizers: networks that propose steps and teleports."""
