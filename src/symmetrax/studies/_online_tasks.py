"""Tasks of the experiment on Algorithm 2: quadratics, functions of the plane, small networks."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from symmetrax.symmetry._quadratic import QuadraticForm
from symmetrax.tasks._base import AbstractTask, AbstractTaskFamily
from symmetrax.tasks._data import Images, digits
from symmetrax.tasks._families import make_family
from symmetrax.tasks._supervised import Classification, ImageFamily

#: Units of learning rates on quadratics: 1 / L, what is drawn for a task, and where descent is fastest.
UNIT, OWN, FASTEST = range(3)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings. `groups` are those of results, and `steps` their length, but for the network's.

    Every group has as many runs as other draws to tune on. `rates` and `betas` are the sizes of logarithmic
    grids. Random quadratics have matrices M M' + `ridge` I, M of standard normal entries, starts
    N(0, `spread`^2) and learning rates uniform in [`slow`, 1] / L, L the largest eigenvalue of the Hessian;
    in more than two dimensions there are `many` of them for each seed. There are `networks`, each with
    `images` of its own. One ellipse is followed for at most `cap` steps.

    >>> Settings().groups[-1]
    'network'
    """

    steps: int = 30
    cap: int = 200
    ridge: float = 0.1
    spread: float = 3.0
    slow: float = 0.2
    many: int = 4
    groups: tuple[str, ...] = (
        *("quadratic 2", "quadratic 3", "quadratic 5", "quadratic 10"),
        *("ellipse-random", "rosenbrock-random", "network"),
    )
    rates: int = 25
    betas: int = 13
    momenta: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
    networks: int = 20
    width: int = 8
    images: int = 200
    network_steps: int = 100


class Quadratic(AbstractTask):
    """f(x) = x' matrix x, positive definite, from a start N(0, spread^2 I).

    >>> task = Quadratic(QuadraticForm(jnp.diag(jnp.array([0.25, 9.0]))), jnp.array(1.0), jnp.array(0.5))
    >>> task.loss(jnp.array([2.0, 1.0])).item(), (1 / task.rates).round(2).tolist()
    (10.0, [18.0, 36.0, 9.25])
    """

    form: QuadraticForm
    spread: Float[Array, ""]
    slow: Float[Array, ""]

    def init(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        return self.spread * jax.random.normal(key, (self.form.size,))

    @property
    def same_batch(self) -> bool:
        return True

    def batch(self, key: Key[Array, ""]) -> None:
        return None

    def loss(self, params: Float[Array, " n"], batch: None = None) -> Float[Array, ""]:
        return params @ self.form.matrix @ params

    def symmetry(self) -> QuadraticForm:
        return self.form

    def optimum(self) -> Float[Array, " n"]:
        return jnp.zeros(self.form.size)

    @property
    def rates(self) -> Float[Array, "3"]:
        """1 / L, the largest learning rate of the descent lemma; `slow` / L; and 1 / (l1 + ln)."""
        low, high = self.form.values[0], self.form.values[-1]
        return jnp.stack([0.5 / high, 0.5 * self.slow / high, 1 / (low + high)])


class Quadratics(AbstractTaskFamily):
    """Random quadratics x' (M M' + ridge I) x in n dimensions, with learning rates uniform in [slow, 1] / L.

    >>> family = Quadratics("mine", 3, jnp.array(0.1), jnp.array(1.0), jnp.array(0.2))
    >>> family.task(family.draw(jax.random.key(0))).form.matrix.shape
    (3, 3)
    """

    name: str = eqx.field(static=True)
    size: int = eqx.field(static=True)
    ridge: Float[Array, ""]
    spread: Float[Array, ""]
    slow: Float[Array, ""]

    def draw(self, key: Key[Array, ""]) -> tuple[QuadraticForm, Float[Array, ""]]:
        # With its eigenvalues, which otherwise every step would have to find again.
        m = jax.random.normal(key, (self.size, self.size))
        slow = jax.random.uniform(jax.random.fold_in(key, 1), minval=self.slow)
        return QuadraticForm(m @ m.T + self.ridge * jnp.eye(self.size)), slow

    def task(self, drawn: tuple[QuadraticForm, Float[Array, ""]], shape: None = None) -> Quadratic:
        return Quadratic(drawn[0], self.spread, drawn[1])


class _OneBatch(Classification):
    """A classifier that sees all of its training images at every step."""

    @property
    def same_batch(self) -> bool:
        return True

    def batch(self, key: Key[Array, ""]) -> Images:
        return self.train


class OneBatchFamily(ImageFamily):
    """Classifiers, each of a batch of images of its own, which it sees at every step.

    >>> import symmetrax as sx
    >>> images = (jnp.ones((9, 4)), jnp.zeros(9, int))
    >>> family = OneBatchFamily("ones", Images(*images), Images(*images), widths=(3,), batch_size=5)
    >>> task = family.task(family.draw(jax.random.key(0)))
    >>> task.batch(jax.random.key(1)).pixels.shape, task.batch_size
    ((5, 4), 5)
    """

    def draw(self, key: Key[Array, ""]) -> Any:
        return Images(*super().task(()).batch(key))

    def task(self, drawn: Images, shape: Any = None) -> Classification:
        return _OneBatch(drawn, self.test, self.widths[0], self.batch_size, slope=self.slope, bias=self.bias)


class Group(NamedTuple):
    """The tasks of a group of results: their family, and the numbers of seeds, tasks for each, and steps.

    `rates` are the lowest and the highest learning rate that are tried.

    >>> Group._fields
    ('family', 'seeds', 'tasks', 'steps', 'rates')
    """

    family: AbstractTaskFamily
    seeds: int
    tasks: int
    steps: int
    rates: tuple[float, float]


def group_of(name: str, settings: Settings, seeds: int, tasks: int) -> Group:
    """The tasks of a group.

    >>> group_of("quadratic 3", Settings(), seeds=50, tasks=30)[1:]
    (50, 4, 30, (0.2, 4.0))
    """
    if name == "network":
        size = {"widths": (settings.width,), "batch_size": settings.images}
        family = OneBatchFamily(name, *digits(), **size, slope=0.1)
        return Group(family, settings.networks, 1, settings.network_steps, (1e-2, 3.0))
    if not name.startswith("quadratic"):
        return Group(make_family(name), seeds, tasks, settings.steps, (1e-3, 1.0))
    size, numbers = int(name.split()[1]), (settings.ridge, settings.spread, settings.slow)
    family = Quadratics(name, size, *map(jnp.asarray, numbers))
    return Group(family, seeds, tasks if size == 2 else settings.many, settings.steps, (0.2, 4.0))
