from ._environment import Environment as Environment
from ._unroll import Carry as Carry
from ._unroll import Trace as Trace
from ._unroll import unroll as unroll
from ._unroll import unroll_many as unroll_many
