"""Searches for the best point of an orbit, or of a level set where no group is known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
