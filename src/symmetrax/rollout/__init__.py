"""Rollouts: an optimizer on one task or on many, as one compiled program, or step by step."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
