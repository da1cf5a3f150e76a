"""Symmetries: transformations of parameters that leave a loss unchanged.

`NetworkSymmetry` puts groups on the axes of arrays and covers almost every symmetry of a network; `verify`
measures whether a symmetry holds. To write your own, subclass `AbstractSymmetry` or `AbstractLieSymmetry`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
