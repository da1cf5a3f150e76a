"""A study of your own: run it with `symmetrax run examples/study.py --preset quick`."""

import jax
import jax.numpy as jnp

import symmetrax as sx
from symmetrax.studies import Budget, Build, BuildJoint, Claim, Control, Learned, Study, switched_off


class Fit(sx.tasks.AbstractTask):
    target: jax.Array

    def init(self, key):
        return {"a": jax.random.normal(key, (4, 3)), "b": jnp.ones((1, 4))}

    def batch(self, key):
        return None

    def loss(self, params, batch=None):
        return jnp.mean((params["b"] @ jax.nn.relu(params["a"]) - self.target) ** 2)

    def symmetry(self):
        like = jax.eval_shape(self.init, jax.random.key(0))
        return sx.NetworkSymmetry({"h": sx.groups.PositiveDiagonal(4)}, {"a": "h _", "b": "_ h*"}, like=like)


class Fits(sx.tasks.AbstractTaskFamily):
    name: str = "fits"

    def draw(self, key):
        return 2 * jax.random.uniform(key, (1, 3))

    def task(self, drawn, shape=None):
        return Fit(drawn)


step, element = Build.of(sx.learned.CoordinatewiseLSTM, width=8), Build.of(sx.learned.PerNeuronLSTM, width=8)
plain, teleporting = Learned("plain", step), Learned("teleporting", BuildJoint((step, element)))
off = Control("switched-off", of="teleporting", rule=switched_off)
helps = Claim("teleporting", "plain", "a learned teleport helps")
study = {"budget": Budget(runs=200, steps=20, unroll=10, tasks=8), "quick": {"seeds": 3, "tasks": 40}}
STUDY = Study("fits", "Do teleports help?", [Fits()], [plain, teleporting, off], ("plain",), [helps], **study)
