"""Matrix groups that act on one axis of an array: scalings, signs, permutations, rotations and more.

Pass them to `sx.symmetry.NetworkSymmetry` and to the functions of `sx.models`. A group has a size, and with
`per` an independent element for every value of an index. To write your own, subclass `AbstractGroup`.

>>> import jax, symmetrax as sx
>>> group = sx.groups.GeneralLinear(16, per={"head": 8})
>>> print(group, group.algebra)
GeneralLinear(16, head=8) (8, 16, 16)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
