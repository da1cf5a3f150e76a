"""A model that is a dict of arrays: write the specs yourself, and teleport once by hand."""

import jax
import jax.numpy as jnp

import symmetrax as sx


def loss(params, batch):
    x, y = batch
    hidden = jax.nn.relu(x @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - y) ** 2)


def main():
    x = jax.random.normal(jax.random.key(0), (32, 4))
    batch = x, jnp.sum(x**2, axis=1, keepdims=True)
    one, two = jax.random.split(jax.random.key(1))
    params = {
        "w1": jax.random.normal(one, (4, 8)),
        "b1": jnp.zeros(8),
        "w2": jax.random.normal(two, (8, 1)),
    }

    # One word for each axis: the hidden units `h` are scaled where they are made, and back (`h*`) where they
    # are read. `_` is an axis that nothing touches.
    spaces = {"h": sx.groups.PositiveDiagonal(8)}
    symmetry = sx.NetworkSymmetry(spaces, {"w1": "_ h", "b1": "h", "w2": "h* _"}, like=params)
    print(sx.verify(loss, params, symmetry, jax.random.key(2), batch, trials=2))

    # The steepest point within e^-1 <= scale <= e, then the one where layers are balanced.
    steep, info = sx.teleport(loss, params, symmetry, batch, search=sx.search.ClosedForm(bound=1.0))
    print(f"squared gradient norm {info.before:.1f} -> {info.after:.1f} for {info.evaluations:g} gradient")
    balanced, less = sx.teleport(
        loss,
        params,
        symmetry,
        batch,
        objective=sx.objectives.NegativeParameterNorm(),
        search=sx.search.ClosedForm(bound=5.0),
    )
    print(f"squared norm of the parameters {-less.before:.1f} -> {-less.after:.1f}")
    return loss(params, batch), loss(steep, batch), loss(balanced, batch), info, less


if __name__ == "__main__":
    main()
