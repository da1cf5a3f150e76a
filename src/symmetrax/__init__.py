"""Parameter symmetries, teleportation along them, and optimizers learned together with both.

The public names are listed in `__init__.pyi`, and each is imported on first use, so that importing the
package (for example to print a command's help) is cheap.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
