"""Optimization tasks, and families from which tasks are drawn for meta-training and experiments.

`make_family` returns a family by name, `family_names` lists the names, and `booth`, `rosenbrock` and their
generalizations are single tasks. To write your own, subclass `AbstractTask` and `AbstractTaskFamily`.

>>> import jax, symmetrax as sx
>>> family = sx.tasks.make_family("regression")
>>> task = family.task(family.draw(jax.random.key(0)))
>>> {name: weight.shape for name, weight in task.init(jax.random.key(1)).items()}
{'w1': (6, 5), 'w2': (7, 6), 'w3': (8, 7)}
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
