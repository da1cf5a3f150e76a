"""`memory=`: what a search takes stays below it, and what it says does not depend on it."""

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest

import symmetrax as sx

KEY = jax.random.key(0)

#: A perceptron of 8 million parameters: 66 MB in double precision.
SEARCH = """
    import json, resource, sys
    import jax, jax.numpy as jnp, symmetrax as sx

    params = {f"w{k}": jax.random.normal(jax.random.key(k), (1024, 1024)) / 32 for k in range(8)}

    def loss(params, x):
        for w in params.values():
            x = jax.nn.relu(x @ w)
        return jnp.mean(x**2)

    def batch(key):
        return jax.random.normal(key, (8, 1024))

    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params, batch(jax.random.key(9))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = sx.find_symmetries(
        loss, params, jax.random.key(0), batch=batch, method="program", memory=eval(sys.argv[1])
    )
    took = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps([took, [[str(one.group), dict(one.symmetry.specs)] for one in found.exact]]))
"""


def searched(memory):
    """The bytes that a search took at most, and what it found, in a process of its own."""
    # Otherwise the allocator keeps much of what is freed, more or less of it by chance.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), repr(memory)]
    made = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(made.stdout)


def test_a_search_stays_below_its_memory():
    took, found = searched(0.35e9)  # 0.58e9 without a bound
    assert len(found) == 15  # scales and permutations of seven layers, permutations of the outputs
    assert took < 0.35e9 + 0.1e9  # the compiler takes some too


def small(activation):
    params = {"w": jax.random.normal(KEY, (6, 3)), "b": jnp.ones(6), "out": jax.random.normal(KEY, (2, 6))}
    x = jax.random.normal(KEY, (5, 3))
    return lambda p: jnp.mean((activation(x @ p["w"].T + p["b"]) @ p["out"].T - x[:, :2]) ** 2), params


@pytest.mark.parametrize("method", ["program", "gradients"])
@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh])
def test_reports_do_not_depend_on_the_memory(method, activation):
    loss, params = small(activation)
    free, bounded = (
        sx.find_symmetries(loss, params, KEY, method=method, memory=memory) for memory in (None, 20_000)
    )
    assert [(str(one.group), dict(one.symmetry.specs)) for one in bounded] == [
        (str(one.group), dict(one.symmetry.specs)) for one in free
    ]
    assert all(one.certificate.holds for one in bounded)


def test_a_memory_that_cannot_suffice_is_an_error_before_any_evaluation():
    calls = []
    _, params = small(jnp.tanh)

    def loss(p):
        calls.append(1)
        return jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] * (p["out"] @ p["out"].T)[0, 0])

    with pytest.raises(ValueError, match=r"`memory` of 3e-07 GB is too small: the search needs"):
        sx.find_symmetries(loss, params, KEY, method="program", memory=300)
    assert not calls
    with pytest.raises(ValueError, match="positive number of bytes"):
        sx.find_symmetries(loss, params, KEY, memory=0)


def test_temporary_arrays_of_the_loss_count():
    params = {"w": jnp.ones(100)}

    def loss(p):
        wide = jnp.sin(jnp.outer(jnp.arange(10_000.0), p["w"]))  # 8 MB
        return jnp.mean((wide @ jnp.sin(wide[:100])) ** 2)

    with pytest.raises(ValueError, match=r"0.0\d+ GB of it for one gradient; search a smaller model"):
        sx.find_symmetries(loss, params, KEY, method="program", memory=1_000_000)
    assert sx.find_symmetries(loss, params, KEY, method="program", memory=1e8).evaluations


def test_elements_too_large_for_the_memory_are_drawn_for_fewer_candidates():
    from symmetrax.discovery._memory import Memory

    memory = Memory(8 * 5 * 8 * 16, size=1, largest=1, trials=3)
    one = sx.groups.Orthogonal(4)
    assert memory.allows([one])
    assert not memory.allows([one] * 9)
