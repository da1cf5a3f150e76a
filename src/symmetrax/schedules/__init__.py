"""Schedules: the steps at which an optimizer teleports.

Pass one as `schedule` to `teleported`: a set of step numbers, one boolean for each step, a function of the
step's number such as `every_n_steps(50)`, or `Plateau()` to wait until the loss stops decreasing.

>>> import symmetrax as sx
>>> [step for step in range(200) if sx.schedules.every_n_steps(50, start=10)(step)]
[10, 60, 110, 160]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
