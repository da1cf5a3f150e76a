"""The symmetries of a transformer, joined from ready parts; and what `verify` says of a wrong spec."""

import jax
import jax.numpy as jnp

import symmetrax as sx

WIDTH, HEADS, TOKENS = 8, 2, 11


def norm(x):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))


def attention(p, x):
    q, k, v = ((x @ p[name].T).reshape(len(x), HEADS, -1) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5)
    return jnp.einsum("hij,jhd->ihd", weights, v).reshape(len(x), -1) @ p["o"].T


def loss(params, tokens):
    x = params["embed"][tokens]
    for p in params["blocks"]:
        x = x + attention(p, norm(x))
        x = x + (jax.nn.silu(norm(x) @ p["gate"].T) * (norm(x) @ p["up"].T)) @ p["down"].T
    logits = norm(x) @ params["head"].T
    return -jnp.mean(jax.nn.log_softmax(logits[:-1])[jnp.arange(len(tokens) - 1), tokens[1:]])


def init(key, blocks=2):
    shapes = dict.fromkeys("qkvo", (WIDTH, WIDTH)) | {"gate": (12, WIDTH), "up": (12, WIDTH)}
    shapes |= {"down": (WIDTH, 12)}
    ends = {"embed": (TOKENS, WIDTH), "head": (TOKENS, WIDTH), "blocks": [shapes] * blocks}
    leaves, tree = jax.tree.flatten(ends, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([0.5 * jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)])


def main():
    params = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (16,), 0, TOKENS)

    # {i} stands for every block. The stream is read only through the norm, so it may be rotated.
    q, k, v, o, gate, up, down = (f"blocks.{{i}}.{name}" for name in (*"qkvo", "gate", "up", "down"))
    symmetry = (
        sx.models.attention_symmetry(params, q, k, v, o, heads=HEADS)
        | sx.models.gated_mlp_symmetry(params, gate, up, down)
        | sx.models.residual_stream_symmetry(
            params, writes=[o, down], reads=[q, k, v, gate, up, "head"], embeddings=["embed"]
        )
    )
    print(symmetry)
    right = sx.verify(loss, params, symmetry, jax.random.key(2), tokens, trials=2)
    print(right)

    # Forget one star: `down` reads its units scaled the wrong way. Mending either spec of the pair would do.
    specs = symmetry.specs | {"blocks.1.down": "stream up1"}
    wrong = sx.verify(loss, params, symmetry.with_specs(specs), jax.random.key(2), tokens, trials=1)
    print(wrong)
    return symmetry, right, wrong


if __name__ == "__main__":
    main()
