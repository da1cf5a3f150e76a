"""Equalized ranges and the best of several bases: against NumPy, and their laws."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx

pytestmark = pytest.mark.usefixtures("quick_compilation")


def network(seed, units=(6,), ins=4, outs=3, spread=2.0):
    """A ReLU network whose units have very different scales."""
    random = np.random.default_rng(seed)
    sizes, params = (ins, *units, outs), {}
    for k, (n, m) in enumerate(itertools.pairwise(sizes), 1):
        params[f"w{k}"] = random.normal(size=(m, n)) * np.exp(spread * random.normal(size=(m, 1)))
        params[f"b{k}"] = random.normal(size=m)

    def function(p, x):
        for k in range(1, len(sizes)):
            x = x @ p[f"w{k}"].T + p[f"b{k}"]
            x = jax.nn.relu(x) if k < len(sizes) - 1 else x
        return x

    return function, params, random.normal(size=(20, ins))


def sides(p):
    """The ranges of hidden units in both layers."""
    return np.abs(p["w1"]).max(axis=1), np.abs(p["w2"]).max(axis=0)


def equalize(loss, params, symmetry, batch=None, **settings):
    search = sx.search.Equalized(**settings)
    there, info = sx.teleport(loss, params, symmetry, batch, search=search)
    assert int(info.outcome) == 0
    assert info.evaluations == 0
    return there


class TestEqualized:
    @hypothesis.settings(max_examples=15)
    @hypothesis.given(st.integers(0, 10_000))
    def test_of_a_hidden_layer_against_numpy(self, float64, seed):
        function, params, x = network(seed)
        symmetry = sx.models.mlp_symmetry(params)
        there = equalize(lambda p, x: jnp.mean(function(p, x) ** 2), params, symmetry, x)
        w1, w2 = params["w1"], params["w2"]
        # Equation (11) of arXiv:1906.04721, with 1 / s for s.
        s = np.sqrt(np.abs(w2).max(axis=0) / np.abs(w1).max(axis=1))
        np.testing.assert_allclose(there["w1"], s[:, None] * w1, rtol=1e-10)
        np.testing.assert_allclose(there["w2"], w2 / s, rtol=1e-10)
        np.testing.assert_allclose(there["b1"], s * params["b1"], rtol=1e-10)
        np.testing.assert_allclose(function(there, x), function(params, x), rtol=1e-9, atol=1e-9)

    def test_of_several_layers_equalizes_them_all(self, float64):
        function, params, x = network(3, units=(6, 5, 7))
        symmetry = sx.models.mlp_symmetry(params)
        there = equalize(lambda p, x: jnp.mean(function(p, x) ** 2), params, symmetry, x, sweeps=200)
        for k in (1, 2, 3):
            up, down = np.abs(there[f"w{k}"]).max(axis=1), np.abs(there[f"w{k + 1}"]).max(axis=0)
            np.testing.assert_allclose(up, down, rtol=1e-8)
        np.testing.assert_allclose(function(there, x), function(params, x), rtol=1e-9, atol=1e-9)
        # One of a point of equal ranges is the identity.
        again = equalize(lambda p, x: jnp.mean(function(p, x) ** 2), there, symmetry, x)
        np.testing.assert_allclose(again["w2"], there["w2"], rtol=1e-7)

    def test_a_unit_with_a_side_of_zeros_stays(self, float64):
        params = {"w1": jnp.array([[4.0, 0.0], [0.0, 0.0], [1.0, 2.0]]), "w2": jnp.array([[1.0, 3.0, 0.0]])}
        symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
        there = equalize(lambda p, _: jnp.sum(p["w2"] @ jax.nn.relu(p["w1"])), params, symmetry)
        np.testing.assert_allclose(there["w1"], [[2.0, 0.0], [0.0, 0.0], [1.0, 2.0]], atol=1e-12)
        np.testing.assert_allclose(there["w2"], [[2.0, 3.0, 0.0]], atol=1e-12)

    @pytest.mark.parametrize("degree", [2, 3])
    def test_powers_of_a_scale(self, float64, degree):
        random = np.random.default_rng(degree)
        params = {"w1": random.normal(size=(4, 3)) * 50, "w2": random.normal(size=(2, 4))}
        symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"], degree=degree)
        loss = lambda p, _: jnp.sum(p["w2"] @ jax.nn.relu(p["w1"]) ** degree)  # noqa: E731
        there = equalize(loss, params, symmetry)
        np.testing.assert_allclose(
            np.abs(there["w1"]).max(axis=1), np.abs(there["w2"]).max(axis=0), rtol=1e-9
        )

    def test_several_arrays_on_a_side_and_indices(self, float64):
        """Scales of heads that share a key, against bisection on what the definition says."""
        random = np.random.default_rng(0)
        params = {
            "a": random.normal(size=(2, 3, 5)),
            "b": 9 * random.normal(size=(2, 3)),
            "c": random.normal(size=(4, 3)),
            "d": random.normal(size=(6, 3)),
        }
        group = sx.groups.PositiveDiagonal(3, per={"head": 2})
        specs = {"a": "head s _", "b": "head s^2", "c": "_ s[1]*", "d": "_ s[0]*"}
        symmetry = sx.NetworkSymmetry({"s": group}, specs, like=params)
        orbit = sx.search.Orbit(lambda p: 0.0, params, symmetry)
        t = np.asarray(sx.search.Equalized()(orbit)).reshape(2, 3)
        for head in range(2):
            down = np.abs(params["dc"[head]]).max(axis=0)
            a, b = np.abs(params["a"][head]).max(axis=1), np.abs(params["b"][head])
            low, high = np.full(3, -20.0), np.full(3, 20.0)
            for _ in range(80):
                middle = (low + high) / 2
                above = np.maximum(a * np.exp(middle), b * np.exp(2 * middle)) > down * np.exp(-middle)
                low, high = np.where(above, low, middle), np.where(above, middle, high)
            np.testing.assert_allclose(t[head], low, atol=1e-12)

    def test_only_matrices_count_unless_you_name_others(self, float64):
        function, params, x = network(1)
        symmetry = sx.models.mlp_symmetry(params)
        params["b1"] = params["b1"] * 1e3
        loss = lambda p, x: jnp.mean(function(p, x) ** 2)  # noqa: E731
        there = equalize(loss, params, symmetry, x)
        np.testing.assert_allclose(
            np.abs(there["w1"]).max(axis=1), np.abs(there["w2"]).max(axis=0), rtol=1e-9
        )
        there = equalize(loss, params, symmetry, x, arrays=("{name}",))
        up = np.maximum(np.abs(there["w1"]).max(axis=1), np.abs(there["b1"]))
        np.testing.assert_allclose(up, np.abs(there["w2"]).max(axis=0), rtol=1e-9)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_rounded_network_changes_less(self, float64, seed):
        """Of units whose scales differ, the small ones would be rounded to zero."""
        function, params, x = network(seed, units=(32,), spread=1.5)
        symmetry = sx.models.mlp_symmetry(params)
        there = equalize(lambda p, x: jnp.mean(function(p, x) ** 2), params, symmetry, x)
        errors = [
            np.mean((function(sx.objectives.quantized(p, 5), x) - function(params, x)) ** 2)
            for p in (params, there)
        ]
        assert errors[1] < errors[0] / 2

    def test_inside_compiled_code_and_in_single_precision(self):
        function, params, x = network(0, units=(5, 5))
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
        symmetry = sx.models.mlp_symmetry(params)

        @jax.jit
        def there(p):
            orbit = sx.search.Orbit(lambda p: jnp.sum(p["w1"]), p, symmetry)
            return symmetry.act(symmetry.exp(sx.search.Equalized()(orbit)), p)

        end = there(params)
        assert end["w1"].dtype == jnp.float32
        np.testing.assert_allclose(function(end, x), function(params, x), rtol=1e-3, atol=1e-3)

    def test_errors(self):
        params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
        scaling = {"h": sx.groups.PositiveDiagonal(3)}
        for symmetry, message in (
            (sx.models.low_rank_symmetry(params, "a", "b"), r"with scalings .*got GeneralLinear\(3\)"),
            (sx.NetworkSymmetry(scaling, {"a": "h _ - 1", "b": "_ h*"}, params), "without offsets"),
            (sx.NetworkSymmetry(scaling, {"a": "h h*"}, params), "'h', got one with 2"),
        ):
            with pytest.raises(ValueError, match=message):
                sx.teleport(lambda p, _: jnp.sum(p["a"]), params, symmetry, search=sx.search.Equalized())
        with pytest.raises(ValueError, match="`sweeps` must be at least 1"):
            sx.search.Equalized(sweeps=0)


class TestBestBasis:
    MODEL = sx.tasks.Architecture(width=8, layers=1, heads=2, kv_heads=1, hidden=6, context=5)
    TEXT = sx.tasks.Text(np.arange(60) % 7, np.arange(60) % 7, "abcdefg")

    def transformer(self):
        task = sx.tasks.LanguageModel(self.TEXT, self.MODEL, batch_size=4)
        params = jax.tree.map(lambda w: w.astype(float), task.init(jax.random.key(0)))
        return task, params, task.batch(jax.random.key(1))

    def test_is_the_best_of_all_that_were_drawn(self, float64):
        task, params, batch = self.transformer()
        params["embedding"] = params["embedding"].at[:, 0].mul(4.0)  # an outlier feature
        error, symmetry = sx.objectives.QuantizationError(4), task.symmetry().only("stream", "qk0")
        key = jax.random.key(5)
        search = sx.search.BestBasis(key, error, samples=4)
        there, info = sx.teleport(task.loss, params, symmetry, batch, search=search, objective=error)
        assert int(info.outcome) == 0
        random = jax.jit(lambda key: sx.search.RandomBasis(key)((), symmetry, params, 0))
        values = [
            float(error(None, symmetry.act(random(one), params)))
            for one in jax.random.split(jax.random.fold_in(key, 0), 4)
        ]
        np.testing.assert_allclose(info.after, max(values), rtol=1e-9)
        assert max(values) > float(info.before)
        letters = batch[:, :-1]
        np.testing.assert_allclose(task.logits(there, letters), task.logits(params, letters), atol=1e-11)

    def test_stays_if_no_other_basis_is_better(self, float64):
        params = {"a": jnp.eye(3), "b": jnp.eye(3)}  # whole numbers are exact at every number of bits
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        search = sx.search.BestBasis(jax.random.key(0), sx.objectives.QuantizationError(4))
        loss = lambda p, _: jnp.sum((p["b"] @ p["a"]) ** 2)  # noqa: E731
        there, _ = sx.teleport(loss, params, symmetry, search=search)
        assert np.array_equal(there["a"], params["a"])
        assert np.array_equal(there["b"], params["b"])

    def test_errors(self):
        with pytest.raises(ValueError, match="objective of the parameters alone, got GradientNorm"):
            sx.search.BestBasis(jax.random.key(0), sx.objectives.GradientNorm())
        with pytest.raises(ValueError, match="at least one sample"):
            sx.search.BestBasis(jax.random.key(0), sx.objectives.QuantizationError(4), samples=0)
        params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((1, 3))}
        search = sx.search.BestBasis(jax.random.key(0), sx.objectives.QuantizationError(4))
        with pytest.raises(ValueError, match=r"needs a space with rotations .*got PositiveDiagonal\(3\)"):
            sx.teleport(lambda p, _: 0.0, params, sx.models.mlp_symmetry(params, ["w1", "w2"]), search=search)
