"""Parameter symmetries, teleportation along them, and optimizers learned together with both.

The public names are listed once, in `__init__.pyi`; each is imported when it is first used, so that
importing the package (for a command line's help, say) costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
