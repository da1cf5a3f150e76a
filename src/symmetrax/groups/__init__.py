"""Matrix groups that act on one axis of an array: scalings, signs, permutations, rotations and more."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
