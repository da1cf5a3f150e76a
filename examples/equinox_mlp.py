"""An equinox MLP whose optimizer teleports: describe the symmetry, check it, wrap any optax optimizer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import symmetrax as sx


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def main(steps=100):
    x = jax.random.normal(jax.random.key(0), (64, 3))
    batch = x, jnp.sin(x[:, :1] + x[:, 1:2] * x[:, 2:])
    model = eqx.nn.MLP(3, 1, width_size=16, depth=2, key=jax.random.key(1))  # relu, the default

    # What goes into a ReLU unit may be scaled if what comes out of it is scaled back.
    symmetry = sx.models.mlp_symmetry(model)
    report = sx.verify(loss, model, symmetry, jax.random.key(2), batch, trials=2)
    print(symmetry)
    print(report)

    # Every 10 steps: the steepest point of the orbit, found in closed form from the gradient at hand.
    optimizer = sx.teleported(
        optax.sgd(0.02, momentum=0.9),
        symmetry,
        search=sx.search.ClosedForm(bound=0.1),
        schedule=sx.schedules.every_n_steps(10),
        transport="carry",
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = optimizer.init(params)

    def value_fn(params):
        return loss(eqx.combine(params, static), batch)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    before = value_fn(params)
    for _ in range(steps):
        params, state = step(params, state)
    after = value_fn(params)
    print(f"loss {before:.4f} -> {after:.4f} in {steps} steps")
    return report, float(before), float(after)


if __name__ == "__main__":
    main()
