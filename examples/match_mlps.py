"""Two MLPs trained from two seeds: the loss barrier between them, before and after they are matched."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import symmetrax as sx

WIDTH, INPUTS, CLASSES = 24, 8, 4


def data(seed, size=512):
    """Points of four classes, each around three of twelve centers."""
    rng = np.random.default_rng(0)
    centers = 1.5 * rng.normal(size=(3 * CLASSES, INPUTS))
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(centers), size)
    x = centers[which] + rng.normal(size=(size, INPUTS))
    return jnp.asarray(x, jnp.float32), jnp.asarray(which % CLASSES)


def loss(params, batch):
    x, y = batch
    hidden = jax.nn.relu(x @ params["w1"].T + params["b1"])
    hidden = jax.nn.relu(hidden @ params["w2"].T + params["b2"])
    logits = hidden @ params["w3"].T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def trained(seed, steps=400):
    shapes = {
        "w1": (WIDTH, INPUTS),
        "b1": (WIDTH,),
        "w2": (WIDTH, WIDTH),
        "b2": (WIDTH,),
        "w3": (CLASSES, WIDTH),
    }
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {
        name: jax.random.normal(key, shape) * (2 / shape[-1]) ** 0.5 * (len(shape) > 1)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    x, y = data(seed=1)
    order = jax.random.randint(jax.random.key(seed + 100), (steps, 64), 0, len(x))
    return jax.lax.scan(step, (params, optimizer.init(params)), (x[order], y[order]))[0][0]


def main():
    one, other = trained(0), trained(1)
    # Rescaled units compute the same network, but no permutation undoes what that does to distances.
    scales, orders = (
        sx.models.mlp_symmetry(one, ["w1", "w2", "w3"], ["b1", "b2", None], group=group)
        for group in (sx.groups.PositiveDiagonal, sx.groups.Permutation)
    )
    one = scales.act(scales.sample(jax.random.key(2)), one)

    fresh = data(seed=2)
    rows = {"as trained": one}
    for name, symmetry in (("permutations", orders), ("all groups", [scales, orders])):
        rows[name] = sx.symmetry.match(one, other, symmetry).params
    barriers = {name: sx.symmetry.barrier(lambda p: loss(p, fresh), p, other) for name, p in rows.items()}
    print(f"loss {loss(one, fresh):.3f} and {loss(other, fresh):.3f}")
    for name, value in barriers.items():
        print(f"barrier, {name}: {value:.3f}")
    return barriers


if __name__ == "__main__":
    main()
