"""Objectives against NumPy, SciPy, closed forms, and finite differences."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import symmetrax as sx

# The norm itself, at matrices that no gradient is.
from symmetrax.objectives._nuclear import nuclear_norm

from ..cases import mostly_slow

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(7)


class Rescaling(sx.symmetry.AbstractLieSymmetry):
    """w1 -> D w1, w2 -> w2 / D with D positive: the symmetry of one hidden layer of ReLUs."""

    linear: ClassVar[bool] = True
    reasons: ClassVar[tuple[str, ...]] = ("holds",)
    units: int = eqx.field(static=True)

    @property
    def algebra(self):
        return (self.units,)

    def identity(self):
        return jnp.ones(self.units)

    def compose(self, a, b):
        return a * b

    def inverse(self, a):
        return 1 / a

    def exp(self, coordinates):
        return jnp.exp(coordinates)

    def sample(self, key):
        return self.exp(jax.random.normal(key, self.algebra))

    def act(self, a, params, batch=None):
        return {"w1": a[:, None] * params["w1"], "w2": params["w2"] / a}

    def holds(self, params, batch=None):
        return sx.symmetry.Precondition(jnp.array(0), jnp.array(0.0))


SYMMETRY = Rescaling(3)

# One for every kind, with their costs; the derivatives of all are tested below.
OBJECTIVES = {
    "squared": (sx.objectives.GradientNorm(), 1),
    "l1": (sx.objectives.GradientNorm("l1"), 1),
    "nuclear": (sx.objectives.GradientNorm("nuclear"), 1),
    "decrease": (sx.objectives.GuaranteedDecrease(), 3),
    "floored": (sx.objectives.GuaranteedDecrease(floor=1e3), 3),
    "after": (sx.objectives.LookaheadLoss(optax.adam(0.1), steps=3), 3 + 1 / 3),
    "sharpness": (sx.objectives.Sharpness(KEY, directions=3, radii=(0.1, 0.4)), 4),
    "curvature": (sx.objectives.Curvature(SYMMETRY, KEY, curves=4), 0.5),
    "small": (sx.objectives.NegativeParameterNorm(), 0),
    "quantized": (sx.objectives.QuantizationError(3), 0),
    "lower": (sx.objectives.negate(sx.objectives.GradientNorm()), 1),
}


def network(dtype: type = float):
    """A loss of two layers without biases on nine samples, and parameters."""
    rng = np.random.default_rng(3)
    inputs, targets = rng.normal(size=(9, 2)).astype(dtype), rng.normal(size=(9, 2)).astype(dtype)
    params = {"w1": rng.normal(size=(3, 2)).astype(dtype), "w2": rng.normal(size=(2, 3)).astype(dtype)}

    def value_fn(w):
        return jnp.mean((jax.nn.relu(inputs @ w["w1"].T) @ w["w2"].T - targets) ** 2)

    return value_fn, jax.tree.map(jnp.asarray, params)


def quadratic(matrix, offset):
    return lambda x: x @ matrix @ x / 2 + offset @ x


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_derivative_along_an_orbit_is_the_central_difference(float64, central_differences, name):
    """Compiled and mapped over points of the orbit; the values are those of a plain call."""
    objective, cost = OBJECTIVES[name]
    value_fn, params = network()

    def on_orbit(xi):
        return objective(value_fn, SYMMETRY.act(SYMMETRY.exp(xi), params))

    many = jax.jit(jax.vmap(jax.value_and_grad(on_orbit)))
    points = np.array([[0.3, -0.2, 0.1], [0.0, 0.0, 0.0]])
    values, slopes = many(points)
    numerical = central_differences(lambda xi: many(np.stack([xi, points[1]]))[0][0], points[0])
    np.testing.assert_allclose(slopes[0], numerical, rtol=1e-6, atol=1e-8)
    assert np.abs(slopes).min() > 1e-4  # something was compared
    assert values[1] == pytest.approx(float(objective(value_fn, params)), rel=1e-12)
    assert objective.cost == pytest.approx(cost)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["squared", "l1", "nuclear", "decrease", "after", "sharpness", "curvature"],
        ("l1", "nuclear", "after", "curvature"),
    ),
)
def test_values_and_derivatives_are_finite_where_the_gradient_is_zero(name):
    """Single precision: at the minimum of a bowl, or a network of zeros, where every curve is a point."""
    objective, _ = OBJECTIVES[name]
    if name in ("squared", "l1", "decrease", "after"):
        value_fn, point = sx.tasks.booth().loss, jnp.array([1.0, 3.0])
    else:
        value_fn, params = network(np.float32)
        point = jax.tree.map(jnp.zeros_like, params)
    assert not any(np.any(x) for x in jax.tree.leaves(jax.grad(value_fn)(point)))
    value, gradient = jax.jit(jax.value_and_grad(lambda w: objective(value_fn, w)))(point)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))
    if name not in ("after", "sharpness"):
        assert value == 0
        assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def matrices():
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=(6, 9)), full_matrices=False)
    spread = (left * 10.0 ** -np.arange(0, 12, 2)) @ right
    return {
        "wide": rng.normal(size=(6, 9)),
        "tall": rng.normal(size=(9, 6)),
        "rank two": rng.normal(size=(6, 2)) @ rng.normal(size=(2, 9)),
        "equal values": left @ right,
        "condition 1e10": spread,
        "tiny": 1e-200 * rng.normal(size=(6, 9)),
        "huge": 1e200 * rng.normal(size=(6, 9)),
        "zero": np.zeros((6, 9)),
    }


@pytest.fixture(scope="module")
def nuclear():
    return jax.jit(jax.value_and_grad(nuclear_norm))


@pytest.mark.parametrize("name", matrices())
def test_the_nuclear_norm_and_its_derivative_are_those_of_the_singular_values(float64, nuclear, name):
    """At full rank the derivative is U V'. At lower rank, a subgradient, of spectral norm 1 and tight."""
    matrix = matrices()[name]
    value, slope = nuclear(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    assert value == pytest.approx(values.sum(), rel=1e-14)
    assert np.vdot(slope, matrix) == pytest.approx(values.sum(), rel=1e-14)
    assert np.linalg.norm(slope, 2) <= 1 + 1e-13
    if name == "zero":
        assert not np.any(slope)
    elif name == "rank two":
        np.testing.assert_allclose(left.T[:2] @ slope @ right[:2].T, np.eye(2), rtol=0, atol=1e-13)
    else:
        # Singular vectors of a value s are known to rounding over s.
        tolerance = 1e-14 * values[0] / values[-1] if name == "condition 1e10" else 1e-13
        np.testing.assert_allclose(slope, left @ right, rtol=0, atol=tolerance)


def test_the_nuclear_norm_in_single_precision_and_half(nuclear):
    for scale in (1.0, 1e-25, 1e25):
        matrix = (scale * matrices()["wide"]).astype(np.float32)
        value, slope = nuclear(matrix)
        left, values, right = np.linalg.svd(matrix.astype(float) / scale, full_matrices=False)
        assert value / scale == pytest.approx(values.sum(), rel=1e-6)
        np.testing.assert_allclose(slope, left @ right, rtol=0, atol=3e-6)
    half = jnp.asarray(matrices()["wide"], jnp.bfloat16)
    exact = np.linalg.svd(np.asarray(half, float), compute_uv=False).sum()
    assert nuclear_norm(half) == pytest.approx(exact, rel=1e-6)


def test_the_nuclear_norm_has_second_derivatives(float64, nuclear, central_differences):
    """Along a line, from the slope; and finite at rank one, where the norm has a kink."""
    matrices_ = matrices()
    a, b = matrices_["wide"], matrices_["rank two"]
    twice = jax.jit(jax.grad(lambda t, a: jnp.vdot(jax.grad(nuclear_norm)(a + t * b), b)))
    numerical = central_differences(lambda t: np.vdot(nuclear(a + t * b)[1], b), np.zeros(1))[0]
    assert twice(0.0, a) == pytest.approx(numerical, rel=1e-6)
    assert np.isfinite(twice(0.0, np.outer(a[:, 0], a[0])))
    assert np.isfinite(twice(0.0, np.zeros_like(a)))


def test_something_infinite_has_no_nuclear_norm():
    for bad in (np.nan, np.inf):
        assert np.isnan(nuclear_norm(jnp.ones((2, 2)).at[0, 1].set(bad)))


def test_gradient_norms_add_over_leaves():
    rng = np.random.default_rng(1)
    gradient = {
        "w": rng.normal(size=(3, 5)),
        "k": rng.normal(size=(4, 2, 3)),
        "b": rng.normal(size=6),
        "s": 2.0,
    }
    gradient = {name: jnp.asarray(x, jnp.float32) for name, x in gradient.items()}
    w, k, b, s = (np.asarray(gradient[name], float) for name in "wkbs")
    values = [np.linalg.svd(m, compute_uv=False).sum() for m in (w, k.reshape(4, 6))]
    expected = {
        "squared": sum(np.sum(x**2) for x in (w, k, b, s)),
        "l1": sum(np.sum(np.abs(x)) for x in (w, k, b, s)),
        "nuclear": sum(values) + np.linalg.norm(b) + abs(s),
    }
    for name, value in expected.items():
        objective = OBJECTIVES[name][0]
        assert isinstance(objective, sx.objectives.AbstractGradientObjective)
        assert objective.measure(gradient) == pytest.approx(value, rel=1e-6)


def test_guaranteed_decrease_is_twice_that_of_an_exact_line_search(float64):
    rng = np.random.default_rng(2)
    decrease = jax.jit(lambda a, b, x: sx.objectives.GuaranteedDecrease(floor=1e-9)(quadratic(a, b), x))
    for _ in range(20):
        root, b, x = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=4)
        f, gradient = quadratic(root @ root.T, b), root @ root.T @ x + b
        steps = np.array([-0.1, 0.0, 0.1])  # three points of the parabola along the gradient tell its vertex
        p, q, _ = np.polyfit(steps, [f(x - s * gradient) for s in steps], 2)
        assert decrease(root @ root.T, b, x) == pytest.approx(2 * q**2 / (4 * p), rel=1e-9)


def test_guaranteed_decrease_credits_no_step_longer_than_one_over_its_floor():
    decrease = jax.jit(
        lambda a, x, floor: sx.objectives.GuaranteedDecrease(floor)(quadratic(a, jnp.zeros(2)), x)
    )
    x = jnp.array([1.0, 2.0])
    for curvature in (-3.0, 0.4, 0.5, 2.0):
        square = 5 * curvature**2  # of the gradient
        expected = square / max(curvature, 0.5)
        assert decrease(curvature * jnp.eye(2), x, jnp.array(0.5)) == pytest.approx(expected, rel=1e-6)


def test_guaranteed_decrease_neither_overflows_nor_vanishes_in_single_precision():
    at = jax.jit(jax.value_and_grad(lambda x: sx.objectives.GuaranteedDecrease()(lambda x: jnp.sum(x**2), x)))
    for scale in (1e-15, 1e-7, 1e15):
        x = np.array([3.0, 4.0], np.float32) * np.float32(scale)
        value, slope = at(x)  # it is 2 ||x||^2
        assert value / scale**2 == pytest.approx(50, rel=1e-5)
        np.testing.assert_allclose(slope / scale, [12, 16], rtol=1e-5)


def test_after_steps_is_a_loop_by_hand(float64):
    """Momentum, Adam, and Polyak's step, which must be given the loss."""
    matrix, start = np.diag([1.0, 3.0]), np.array([2.0, -1.0])
    f = quadratic(matrix, np.zeros(2))

    def momentum(x):
        velocity = np.zeros(2)
        for _ in range(4):
            velocity = 0.9 * velocity + matrix @ x
            x = x - 0.1 * velocity
        return x

    def adam(x):
        first, second = np.zeros(2), np.zeros(2)
        for t in range(1, 5):
            g = matrix @ x
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            x = x - 0.1 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        return x

    def polyak(x):
        for _ in range(4):
            g = matrix @ x
            x = x - f(x) / (g @ g) * g
        return x

    optimizers = {
        momentum: optax.sgd(0.1, momentum=0.9),
        adam: optax.adam(0.1),
        polyak: optax.polyak_sgd(max_learning_rate=10.0),
    }
    for by_hand, optimizer in optimizers.items():
        found = jax.jit(lambda x, o=optimizer: sx.objectives.LookaheadLoss(o, steps=4)(f, x))(start)
        assert found == pytest.approx(-f(by_hand(start)), rel=1e-10)


def test_after_steps_survives_a_dead_input_and_steps_exactly(float64, central_differences):
    """The second coordinate never has a gradient: Adam's root has no derivative there, a sign must stay 0."""
    f = lambda x: jnp.sin(3 * x[0]) + x[0] ** 2 + 0 * x[1]  # noqa: E731
    x = np.array([0.3, 5.0])
    for optimizer in (optax.adam(0.1), optax.rmsprop(0.1)):
        after = jax.jit(lambda x, o=optimizer: sx.objectives.LookaheadLoss(o, steps=3)(f, x))
        slope = jax.jit(jax.grad(after))(x)
        np.testing.assert_allclose(slope, central_differences(after, x), rtol=1e-7, atol=1e-9)
        assert np.isfinite(jax.jvp(after, (x,), (np.ones(2),))[1])
    signs = sx.objectives.LookaheadLoss(optax.sign_sgd(0.25), steps=2)
    assert signs(lambda x: x[0] + jnp.where(x[1] == 5, 0.0, 9.0), jnp.asarray(x)) == pytest.approx(0.2)


def test_sharpness_of_a_quadratic_is_its_trace(float64):
    """On sphere-shaped bowls exactly; else within four standard errors of the directions drawn."""
    n, count, radii = 5, 3000, np.array([0.5, 2.0])
    rng = np.random.default_rng(4)
    matrix = rng.uniform(0.5, 1.5, size=(n, n))  # directions of the positive orthant would see far more
    matrix, offset, x = matrix + matrix.T, rng.normal(size=n), rng.normal(size=n)

    @jax.jit
    def sharpness(matrix, radii):
        f = lambda w: quadratic(matrix, offset)(jnp.concatenate([w["a"], w["b"]]))  # noqa: E731
        return sx.objectives.Sharpness(KEY, count, radii)(
            f, {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2:])}
        )

    squares = np.mean(radii**2)
    assert sharpness(3 * np.eye(n), radii) == pytest.approx(
        quadratic(3 * np.eye(n), offset)(x) + 3 * squares / 2, rel=1e-12
    )
    excess = sharpness(matrix, radii) - quadratic(matrix, offset)(x)
    variance = 2 / (n * (n + 2)) * (np.sum(matrix**2) - np.trace(matrix) ** 2 / n)  # of d'Hd on the sphere
    error = squares / 2 * np.sqrt(variance / count)
    expected = squares * np.trace(matrix) / (2 * n)
    assert abs(excess - expected) < 4 * error
    assert 20 * error < expected


def test_sharpness_belongs_to_its_key():
    value_fn, params = network(np.float32)
    at = jax.jit(lambda key: sx.objectives.Sharpness(key, directions=2)(value_fn, params))
    assert at(KEY) == at(KEY)
    assert at(KEY) != at(jax.random.key(8))


def rosenbrock_curve(x, t):
    """x turned by t on the orbit of (1 - x)^2 + 100 (y - x^2)^2, written out."""
    u, v = 10 * (x[0] ** 2 - x[1]), x[0] - 1
    u, v = np.cos(t) * u - np.sin(t) * v, np.sin(t) * u + np.cos(t) * v
    return np.array([v + 1, (v + 1) ** 2 - u / 10])


def test_curvature_is_that_of_finite_differences(float64):
    """B06: the algebra has one coordinate, so every unit direction is the same curve, there or back."""
    task, step = sx.tasks.rosenbrock(), 1e-4
    objective = sx.objectives.Curvature(task.symmetry(), KEY, curves=2)
    points = np.random.default_rng(5).normal(size=(20, 2))
    found = jax.jit(jax.vmap(lambda x: objective(task.loss, x)))(points)
    for x, kappa in zip(points, found, strict=True):
        up, at, down = (rosenbrock_curve(x, t) for t in (step, 0, -step))
        (vx, vy), (ax, ay) = (up - down) / (2 * step), (up - 2 * at + down) / step**2
        assert kappa == pytest.approx(abs(vx * ay - vy * ax) / np.hypot(vx, vy) ** 3, rel=1e-5)


def test_curvature_of_one_rescaled_unit_has_a_closed_form(float64):
    """With p and q the squared norms of what goes in and out: 2 sqrt(p q) / (p + q)^(3/2)."""
    rng = np.random.default_rng(6)
    params = {"w1": rng.normal(size=(1, 4)), "w2": rng.normal(size=(2, 1))}
    p, q = np.sum(params["w1"] ** 2), np.sum(params["w2"] ** 2)
    kappa = jax.jit(lambda w: sx.objectives.Curvature(Rescaling(1), KEY)(lambda w: 0.0, w))(params)
    assert kappa == pytest.approx(2 * np.sqrt(p * q) / (p + q) ** 1.5, rel=1e-12)


def test_curvature_is_a_mean_over_unit_directions(float64):
    """By the published formula, with velocity (M w1, -w2 M) and acceleration (M^2 w1, w2 M^2)."""
    value_fn, params = network()
    count = 4000
    drawn = np.random.default_rng(9).normal(size=(count, 3))
    kappas = []
    for m in drawn / np.linalg.norm(drawn, axis=1, keepdims=True):
        w1, w2 = params["w1"], params["w2"]
        v = np.concatenate([np.ravel(m[:, None] * w1), np.ravel(-w2 * m)])
        a = np.concatenate([np.ravel(m[:, None] ** 2 * w1), np.ravel(w2 * m**2)])
        kappas.append(np.sqrt(v @ v * (a @ a) - (v @ a) ** 2) / (v @ v) ** 1.5)
    found = jax.jit(lambda w: sx.objectives.Curvature(SYMMETRY, KEY, curves=count)(value_fn, w))(params)
    error = np.std(kappas) * np.sqrt(2 / count)
    assert abs(found - np.mean(kappas)) < 4 * error
    assert error < 0.02 * np.mean(kappas)


def test_the_batch_reaches_the_action_of_a_curve(float64):
    class Turns(sx.symmetry.Pullback):
        def act(self, a, params, batch=None):
            return jnp.asarray(batch) * super().act(a, params)

    circle = sx.symmetry.Affine(jnp.eye(2), jnp.zeros(2))
    objective = sx.objectives.Curvature(Turns(circle), KEY, curves=1, batch=jnp.array(2.0))
    kappa = jax.jit(lambda x: objective(lambda x: 0.0, x))(jnp.array([0.0, 4.0]))
    assert kappa == pytest.approx(1 / 8)


def test_lower_turns_around_and_keeps_kind_and_cost():
    value_fn, params = network(np.float32)
    for objective, kind in (
        (sx.objectives.GradientNorm("l1"), sx.objectives.AbstractGradientObjective),
        (sx.objectives.LookaheadLoss(optax.sgd(0.1), 2), sx.objectives.AbstractObjective),
        (lambda value_fn, params: value_fn(params), sx.objectives.AbstractObjective),
    ):
        below = sx.objectives.negate(objective)
        assert isinstance(below, kind)
        assert sx.objectives.cost_of(below) == sx.objectives.cost_of(objective)
        assert below(value_fn, params) == pytest.approx(-float(objective(value_fn, params)))
        assert sx.objectives.negate(below)(value_fn, params) == pytest.approx(
            float(objective(value_fn, params))
        )
    assert not isinstance(
        sx.objectives.negate(sx.objectives.NegativeParameterNorm()), sx.objectives.AbstractGradientObjective
    )
    gradient = jax.grad(value_fn)(params)
    below = sx.objectives.negate(sx.objectives.squared_gradient_norm)
    assert isinstance(below, sx.objectives.AbstractGradientObjective)
    assert below.measure(gradient) == -sx.objectives.squared_gradient_norm(value_fn, params)


def test_small_norm_is_largest_where_layers_are_balanced(float64):
    """The best scale of each unit is the square root of out over in, known in closed form."""
    value_fn, params = network()
    sizes = np.linalg.norm(params["w1"], axis=1), np.linalg.norm(params["w2"], axis=0)
    balanced = jnp.log(np.sqrt(sizes[1] / sizes[0]))

    def on_orbit(xi):
        return sx.objectives.NegativeParameterNorm()(value_fn, SYMMETRY.act(SYMMETRY.exp(xi), params))

    np.testing.assert_allclose(jax.grad(on_orbit)(balanced), 0, atol=1e-12)
    assert on_orbit(balanced) == pytest.approx(-2 * np.sum(sizes[0] * sizes[1]), rel=1e-12)
    assert on_orbit(balanced) > on_orbit(jnp.zeros(3))


def test_teleport_raises_objectives_of_points_and_of_gradients(float64):
    value_fn, params = network()
    for name in ("after", "lower"):

        @jax.jit
        def travel(params, objective=OBJECTIVES[name][0]):
            search = sx.search.Ascent(steps=3, rate=1e-2)
            there, info = sx.teleport(
                lambda w, _: value_fn(w), params, SYMMETRY, objective=objective, search=search, guard=None
            )
            return value_fn(there), info._replace(evaluations=0)

        value, info = travel(params)
        assert info.after > info.before
        assert value == pytest.approx(float(value_fn(params)), rel=1e-12)


def test_objectives_say_what_they_need(unchecked):
    wrong: Any = "l2"
    with pytest.raises(ValueError, match="'squared', 'l1' or 'nuclear', got 'l2'"):
        sx.objectives.GradientNorm(wrong)
    with pytest.raises(ValueError, match=r"floor > 0, got floor=0.0"):
        sx.objectives.GuaranteedDecrease(floor=0.0)
    with pytest.raises(ValueError, match="at least one step, got steps=0"):
        sx.objectives.LookaheadLoss(optax.sgd(0.1), steps=0)
    with pytest.raises(ValueError, match="at least one direction, got directions=0"):
        sx.objectives.Sharpness(KEY, directions=0)
    with pytest.raises(ValueError, match="at least one radius"):
        sx.objectives.Sharpness(KEY, radii=())
    with pytest.raises(ValueError, match="at least one curve, got curves=0"):
        sx.objectives.Curvature(SYMMETRY, KEY, curves=0)
