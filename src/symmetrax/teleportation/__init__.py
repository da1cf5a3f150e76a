"""Teleportation: moving parameters along an orbit, before a step or within an optimizer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
