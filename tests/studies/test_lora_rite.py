"""LoRA-RITE against its formulas in NumPy, and what it is there for: it does not see the split."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from symmetrax.studies._lora_rite import lora_rite

pytestmark = pytest.mark.usefixtures("quick_compilation")

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(40, 7)), RANDOM.normal(size=(40, 5))
PARAMS = {"a": RANDOM.normal(size=(3, 7)), "b": RANDOM.normal(size=(5, 3))}


def loss(p):
    return jnp.mean((X @ (p["b"] @ p["a"]).T - Y) ** 2)


@jax.jit
def trajectory(params):
    """The products of thirty steps, and the parameters after them."""
    optimizer = lora_rite(0.03, b1=0.8, b2=0.9)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["b"] @ params["a"]

    (params, _), products = jax.lax.scan(step, (params, optimizer.init(params)), length=30)
    return products, params


def by_hand(x, y, gradient, kept, t, b1, b2):
    """The step of X in X Y', by the formulas of arXiv:2410.20625, with a basis from the SVD."""
    u, s, vh = np.linalg.svd(y, full_matrices=False)
    r = s[:, None] * vh
    g = gradient @ np.linalg.inv(r)
    d1, d2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (b1, b2))
    if kept is None:
        v, m, rho = g.T @ g / len(g), 0.0, 0.0
    else:
        p = u.T @ kept[0]
        there = p @ kept[1] @ p.T
        rho = d2 * (kept[3] + np.abs(np.linalg.eigvalsh(kept[1]) - np.linalg.eigvalsh(there)).max())
        v, m = d2 * there + (1 - d2) * g.T @ g / len(g), kept[2] @ p.T
    w, e = np.linalg.eigh(v)
    m = d1 * m + (1 - d1) * g @ e @ np.diag(1 / np.sqrt(w + rho)) @ e.T
    return m @ np.linalg.inv(r).T, (u, v, m, rho)


def test_is_its_formulas(float64):
    a, b = PARAMS["a"], PARAMS["b"]
    kept: list = [None, None]
    products, end = trajectory(jax.tree.map(jnp.asarray, PARAMS))
    for t in range(1, 31):
        residual = 2 * (X @ (b @ a).T - Y) / Y.size
        gb, ga = residual.T @ X @ a.T, b.T @ residual.T @ X
        step_b, kept[0] = by_hand(b, a.T, gb, kept[0], t, 0.8, 0.9)
        step_a, kept[1] = by_hand(a.T, b, ga.T, kept[1], t, 0.8, 0.9)
        a, b = a - 0.03 * step_a.T, b - 0.03 * step_b
        np.testing.assert_allclose(products[t - 1], b @ a, atol=1e-6)
    assert kept[0][3] > 0
    np.testing.assert_allclose(end["a"], a, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_the_result_does_not_depend_on_how_the_product_was_split(float64, seed):
    random = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(random.normal(size=(3, 3)))
    m = left * np.exp(random.uniform(-1, 1, 3)) @ right
    split = {"a": jnp.asarray(m @ PARAMS["a"]), "b": jnp.asarray(PARAMS["b"] @ np.linalg.inv(m))}
    there, here = trajectory(split)[0], trajectory(jax.tree.map(jnp.asarray, PARAMS))[0]
    np.testing.assert_allclose(there, here, atol=1e-6)
    assert np.abs(here[-1] - here[0]).max() > 0.1


def test_starts_where_lora_does_and_lowers_the_loss(float64):
    params = {"a": jnp.asarray(PARAMS["a"]), "b": jnp.zeros((5, 3))}
    _, end = trajectory(params)
    assert np.all(np.isfinite(end["a"]))
    assert loss(end) < 0.95 * loss(params)
