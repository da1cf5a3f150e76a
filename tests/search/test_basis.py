"""Searches for a basis: moments, rotations and balanced points against NumPy, and their laws."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.search._moments import diagonalized, second_moments

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = sx.tasks.Architecture(width=8, layers=2, heads=4, kv_heads=2, hidden=6, context=5)
TEXT = sx.tasks.Text(np.arange(60) % 7, np.arange(60) % 7, "abcdefg")


def transformer(**changes):
    task = sx.tasks.LanguageModel(TEXT, dataclasses.replace(MODEL, **changes), batch_size=4)
    params = task.init(jax.random.key(0))
    return task, jax.tree.map(lambda w: w.astype(float), params), task.batch(jax.random.key(1))


def low_rank(seed, rank=3, ins=7, outs=5):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(40, ins)), random.normal(size=(40, outs))

    def loss(p, batch=None):
        return jnp.mean((x @ (p["b"] @ p["a"]).T - y) ** 2)

    params = {"a": random.normal(size=(rank, ins)), "b": random.normal(size=(outs, rank))}
    return loss, jax.tree.map(jnp.asarray, params)


class TestMoments:
    def test_of_a_transformer_against_numpy(self, float64):
        task, params, batch = transformer()
        gradient = jax.grad(task.loss)(params, batch)
        moments = second_moments(task.symmetry(), gradient)
        g = jax.tree.map(np.asarray, gradient)

        def share(matrix):
            gram = matrix @ matrix.T
            return matrix.size * gram / np.trace(gram)

        reads = [layer[n].T for layer in g["layers"] for n in ("query", "key", "value", "up", "gate")]
        writes = [layer[n] for layer in g["layers"] for n in ("output", "down")]
        legs = [*reads, *writes, *(g[n].T for n in ("embedding", "head", "positions"))]
        stream = sum(map(share, legs)) / sum(leg.size for leg in legs)
        np.testing.assert_allclose(moments["stream"][0], stream, atol=1e-12)
        # Two queries share a key: its head sees both.
        layer = g["layers"][0]
        queries, keys = layer["query"].reshape(2, 2, 2, 8), layer["key"].reshape(2, 2, 8)
        total = layer["query"].size + layer["key"].size
        for head in range(2):
            rows = np.concatenate(list(queries[head]), axis=1)
            gram = rows @ rows.T
            mine = layer["query"].size * gram / np.trace(gram) / total
            np.testing.assert_allclose(moments["qk0"][0, head], mine, atol=1e-12)
            gram = keys[head] @ keys[head].T
            mine = layer["key"].size * gram / np.trace(gram) / total
            np.testing.assert_allclose(moments["qk0"][1, head], mine, atol=1e-12)

    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
    def test_do_not_depend_on_the_scale_of_a_gradient(self, scale):
        loss, params = low_rank(0)
        params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        gradient = jax.grad(loss)(params)
        there = second_moments(symmetry, jax.tree.map(lambda g: scale * g, gradient))["rank"]
        expected = second_moments(symmetry, gradient)["rank"] * (scale > 0)
        np.testing.assert_allclose(there, expected, atol=1e-6)

    @pytest.mark.parametrize("spaces", [("stream",), ("qk0", "vo1"), ("stream", "vo0")])
    def test_carried_along_rotations_are_those_of_carried_gradients(self, float64, spaces):
        task, params, batch = transformer()
        symmetry = task.symmetry().only("stream", "qk0", "qk1", "vo0", "vo1")
        gradient = jax.grad(task.loss)(params, batch)
        moments = second_moments(symmetry, gradient)
        turns = diagonalized(symmetry, {name: moments[name] for name in spaces})
        element = symmetry.identity() | turns
        there = second_moments(symmetry, symmetry.transport_gradient(element, params, gradient))
        carried = sx.search.Eigenbasis().carry(moments, symmetry, element)
        for name in moments:
            np.testing.assert_allclose(carried[name], there[name], atol=1e-12)

    def test_ignore_axes_that_turn_otherwise(self, float64):
        random = np.random.default_rng(0)
        params = {name: jnp.asarray(random.normal(size=(2, 4))) for name in "abc"}
        specs = {"a": "r _", "b": "r^2 _", "c": "r^-1 _"}
        symmetry = sx.NetworkSymmetry({"r": sx.groups.ScaledRotation(unit=True)}, specs, params)
        element = symmetry.sample(jax.random.key(0))
        there = second_moments(symmetry, symmetry.transport_gradient(element, params, params))
        carried = sx.search.Eigenbasis().carry(second_moments(symmetry, params), symmetry, element)
        np.testing.assert_allclose(carried["r"], there["r"], atol=1e-12)

    def test_of_a_space_without_arrays_are_zero(self):
        _, params = low_rank(0)
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        both = symmetry | sx.NetworkSymmetry({"z": sx.groups.Orthogonal(5)}, {"b": "z _"}, params)
        search, within = sx.search.Eigenbasis(), both.within({"a": params["a"]})
        memory = search.watch(search.init(within, params), within, params, 0)
        assert not np.any(memory["z"])
        assert np.array_equal(search(memory, within, params, 0)["z"], np.eye(5))


class TestEigenbasis:
    @pytest.mark.parametrize("positions", ["learned", "rotary"])
    @pytest.mark.parametrize("normalized", [False, True])
    def test_moves_a_transformer_without_changing_it(self, float64, positions, normalized):
        task, params, batch = transformer(positions=positions, normalized=normalized, width=16)
        symmetry = task.symmetry()
        there, info = sx.teleport(task.loss, params, symmetry, batch, search=sx.search.Eigenbasis())
        assert int(info.outcome) == 0
        letters = batch[:, :-1]
        np.testing.assert_allclose(task.logits(there, letters), task.logits(params, letters), atol=1e-12)
        moments = second_moments(symmetry, jax.grad(task.loss)(there, batch))
        for name, sides in moments.items():
            # With rotary embeddings, pairs that share frequencies turn together, each in two dimensions.
            whole = sides.sum(axis=0)
            diagonal = whole * jnp.eye(whole.shape[-1])
            np.testing.assert_allclose(whole, diagonal, atol=1e-12, err_msg=name)

    @hypothesis.settings(max_examples=20)
    @hypothesis.given(st.integers(0, 10_000))
    def test_balanced_it_forgets_how_a_product_was_split(self, float64, seed):
        loss, params = low_rank(0)
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        random = np.random.default_rng(seed)
        left, _, right = np.linalg.svd(random.normal(size=(3, 3)))
        m = left * np.exp(random.uniform(-2, 2, 3)) @ right
        split = {"a": jnp.asarray(m @ params["a"]), "b": jnp.asarray(params["b"] @ np.linalg.inv(m))}
        search = sx.search.Eigenbasis(balanced=True)
        ends = [sx.teleport(loss, p, symmetry, search=search, guard=None)[0] for p in (params, split)]
        # The basis is unique up to its order and signs, to which coordinate-wise optimizers are blind.
        order, signs = _matched(ends[0]["a"], ends[1]["a"])
        np.testing.assert_allclose(signs[:, None] * ends[1]["a"][order], ends[0]["a"], atol=1e-6)
        np.testing.assert_allclose(ends[1]["b"][:, order] * signs, ends[0]["b"], atol=1e-6)

    def test_of_a_random_basis_is_a_control_that_changes_nothing_else(self, float64):
        task, params, batch = transformer()
        control = sx.search.RandomBasis(jax.random.key(3))
        there, info = sx.teleport(task.loss, params, task.symmetry(), batch, search=control)
        assert int(info.outcome) == 0
        assert not np.allclose(there["head"], params["head"], atol=0.1)
        np.testing.assert_allclose(task.loss(there, batch), task.loss(params, batch), atol=1e-12)

    def test_a_gradient_that_is_not_finite_is_not_remembered(self):
        loss, params = low_rank(0)
        symmetry, search = sx.models.low_rank_symmetry(params, "a", "b"), sx.search.Eigenbasis()
        memory = search.watch(search.init(symmetry, params), symmetry, jax.grad(loss)(params), 0)
        bad = {"a": params["a"].at[0, 0].set(jnp.nan), "b": params["b"]}
        assert np.array_equal(search.watch(memory, symmetry, bad, 1)["rank"], memory["rank"])

    def test_turns_part_of_the_way_and_only_where_it_pays(self, float64):
        loss, params = low_rank(0)
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        whole = sx.search.Eigenbasis()
        memory = whole.watch(whole.init(symmetry, params), symmetry, jax.grad(loss)(params), 0)
        moment = np.asarray(memory["rank"].sum(axis=0))
        off = moment - np.diag(np.diag(moment))

        def turn(**options):
            q, _ = sx.search.Eigenbasis(**options)(memory, symmetry, params, 0)["rank"]
            return np.asarray(q)

        shrunk = np.diag(np.diag(moment)) + 0.3 * off
        moved = turn(share=0.3) @ shrunk @ turn(share=0.3).T
        np.testing.assert_allclose(moved, np.diag(np.diag(moved)), atol=1e-14)
        angles = [np.linalg.norm(turn(share=share) - np.eye(3)) for share in (0.0, 0.3, 1.0)]
        assert angles[0] == 0 < angles[1] < angles[2]
        share = np.sum(off**2) / np.sum(moment**2)
        assert np.array_equal(turn(threshold=1.01 * share), np.eye(3))
        np.testing.assert_array_equal(turn(threshold=0.99 * share), turn())

    def test_watches_at_every_stride(self):
        loss, params = low_rank(0)
        symmetry, search = sx.models.low_rank_symmetry(params, "a", "b"), sx.search.Eigenbasis(stride=3)
        memory = search.init(symmetry, params)
        seen = []
        for count in range(7):
            after = search.watch(memory, symmetry, jax.grad(loss)(params), jnp.asarray(count))
            seen.append(not np.array_equal(after["rank"], memory["rank"]))
            memory = after
        assert seen == [True, False, False, True, False, False, True]


def _matched(a, b):
    """The order and signs of rows of b that make it a, up to rounding."""
    cosines = np.asarray(
        (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    )
    order = np.abs(cosines).argmax(axis=1)
    return order, np.sign(cosines[np.arange(len(order)), order])


class TestBalanced:
    def test_makes_gram_matrices_and_norms_equal(self, float64):
        loss, params = low_rank(1)
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        there, info = sx.teleport(loss, params, symmetry, search=sx.search.Balanced())
        assert int(info.outcome) == 0
        np.testing.assert_allclose(there["a"] @ there["a"].T, there["b"].T @ there["b"], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(there["b"] @ there["a"], params["b"] @ params["a"], atol=1e-11)

    def test_of_units_leaves_dead_ones_alone(self, float64):
        params = {"w1": jnp.array([[4.0, 0.0], [0.0, 0.0], [1.0, 2.0]]), "w2": jnp.array([[1.0, 3.0, 0.0]])}
        symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
        loss = lambda p, _: jnp.sum(p["w2"] @ jax.nn.relu(p["w1"]))  # noqa: E731
        there, _ = sx.teleport(loss, params, symmetry, search=sx.search.Balanced())
        np.testing.assert_allclose(there["w1"], [[2.0, 0.0], [0.0, 0.0], [1.0, 2.0]], atol=1e-12)
        np.testing.assert_allclose(there["w2"], [[2.0, 3.0, 0.0]], atol=1e-12)

    def test_a_factor_that_is_zero_has_no_balanced_point(self, float64):
        loss, params = low_rank(1)
        params = params | {"b": jnp.zeros_like(params["b"])}
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        there, info = sx.teleport(loss, params, symmetry, search=sx.search.Balanced())
        assert int(info.outcome) == 0
        assert np.array_equal(there["a"], params["a"])


class TestErrors:
    def test_without_rotations(self):
        params = {"w1": jnp.ones((3, 2)), "w2": jnp.ones((1, 3))}
        symmetry = sx.models.mlp_symmetry(params, ["w1", "w2"])
        with pytest.raises(ValueError, match=r"needs a space with rotations .*got PositiveDiagonal\(3\)"):
            sx.teleport(lambda p, _: 0.0, params, symmetry, search=sx.search.Eigenbasis())
        with pytest.raises(ValueError, match="needs a space with rotations"):
            sx.teleport(
                lambda p, _: 0.0, jnp.ones(2), sx.tasks.booth().symmetry(), search=sx.search.Eigenbasis()
            )

    def test_of_balancing_other_symmetries(self):
        _, params = low_rank(0)
        both = sx.models.low_rank_symmetry(params, "a", "b") | sx.symmetry.LogitShift("b", like=params)
        with pytest.raises(ValueError, match="got Joined: balance along a NetworkSymmetry alone"):
            sx.teleport(lambda p, _: 0.0, params, both, search=sx.search.Balanced())
        offset = sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(3)}, {"a": "h _ - 1"}, params)
        with pytest.raises(ValueError, match=r"restrict it to the other spaces with symmetry\.only"):
            sx.teleport(lambda p, _: 0.0, params, offset, search=sx.search.Balanced())

    def test_of_too_many_dimensions(self):
        params = {"a": jnp.ones((9, 12)), "b": jnp.ones((10, 9))}
        symmetry = sx.models.low_rank_symmetry(params, "a", "b")
        with pytest.raises(ValueError, match=r"'rank' has 9 dimensions.* largest=8"):
            sx.teleport(lambda p, _: 0.0, params, symmetry, search=sx.search.Eigenbasis(largest=8))

    def test_of_settings(self):
        with pytest.raises(ValueError, match="`stride` counts steps"):
            sx.search.Eigenbasis(stride=0)
        with pytest.raises(ValueError, match="`decay` must be"):
            sx.search.Eigenbasis(decay=1.0)
        with pytest.raises(ValueError, match=r"`share` must be between 0 and 1, got 1\.5"):
            sx.search.Eigenbasis(share=1.5)
