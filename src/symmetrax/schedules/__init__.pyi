from ._schedule import Plateau as Plateau
from ._schedule import every_n_steps as every_n_steps
