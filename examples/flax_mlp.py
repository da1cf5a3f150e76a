"""A flax network: its state is the parameters, and paths in it name the arrays."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import symmetrax as sx


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner, self.outer = nnx.Linear(3, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(jax.nn.leaky_relu(self.inner(x)))


def main(steps=100):
    x = jax.random.normal(jax.random.key(0), (64, 3))
    batch = x, jnp.sin(x[:, :1] + x[:, 1:2] * x[:, 2:])
    graph, params = nnx.split(MLP(nnx.Rngs(0)), nnx.Param)

    def loss(params, batch):
        x, y = batch
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    # Arrays have the names of their attributes; flax stores matrices as (in, out).
    kernels = ["inner.kernel", "outer.kernel"]
    symmetry = sx.models.mlp_symmetry(params, kernels, ["inner.bias"], layout="in out")
    print(symmetry)
    report = sx.verify(loss, params, symmetry, jax.random.key(1), batch, trials=2)
    print(report)

    # Whenever the loss has fallen by less than a percent for two steps, go to a steeper point.
    search, schedule = sx.search.ClosedForm(bound=0.1), sx.schedules.Plateau(patience=2, rtol=1e-2)
    optimizer = sx.teleported(optax.adam(3e-2), symmetry, search=search, schedule=schedule)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(
            gradient, state, params, value=value, value_fn=lambda params: loss(params, batch)
        )
        return optax.apply_updates(params, updates), state

    before, teleports = loss(params, batch), 0
    for _ in range(steps):
        params, state = step(params, state)
        teleports += bool(jnp.any(state.algebra != 0))  # zeros where none was due
    after = loss(params, batch)  # nnx.merge(graph, params) is the trained model
    print(f"loss {before:.4f} -> {after:.4f}, {teleports} teleports in {steps} steps")
    return report, float(before), float(after), teleports


if __name__ == "__main__":
    main()
