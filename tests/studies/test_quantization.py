"""The experiment on rounding weights, in a tiny setting, and its networks against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from symmetrax.studies import quantization
from symmetrax.studies._quantization_networks import _convolved, _folded, classifier
from symmetrax.studies.core._console import Reporter
from symmetrax.studies.core._folder import RunFolder
from symmetrax.studies.core._runner import run_study, show_study

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_it_rounds_every_network_at_every_point(tmp_path, capsys):
    settings = quantization.Settings(2, 2, quantization._TINY, (8, 4, 2), 2, ("cnn", "transformer"))
    study = dataclasses.replace(quantization.STUDIES["quantization"], seeds=2, settings=settings)
    folder = RunFolder(tmp_path / "run", "quantization", "quick", study.identity())
    results = run_study(study, folder, Reporter(quiet=True))
    show_study(study, results, Reporter())
    assert "largest change of a logit" in capsys.readouterr().out
    assert list(results["networks"]) == ["cnn", "transformer"]
    assert "needs a space with rotations" in results["networks"]["cnn"]["rotations"]
    for network in results["networks"].values():
        assert max(network["logit_change"].values()) < 1e-4
        for per in quantization.PERS:
            assert list(network[per]) == ["8", "4", "2"]
    with np.load(folder.path / "losses.npz") as arrays:
        full, plain = arrays["transformer.full."], arrays["transformer.plain.tensor"]
        assert plain.shape == (2, 3)
        # At 8 bits nothing is lost, whatever the basis; at 2 bits much is.
        for arm in ("equalized", "random", "best", "best + equalized"):
            np.testing.assert_allclose(arrays[f"transformer.{arm}.channel"][:, 0], full, rtol=0.01)
        assert np.all(np.abs(plain[:, 2] - full) > np.abs(plain[:, 0] - full))
    assert (folder.path / "quantization.png").exists()
    assert {row["outcome"] for row in results["verdicts"]} <= {"reproduced", "reversed", "inconclusive"}
    assert len(results["verdicts"]) == 7


@pytest.mark.parametrize("seed", range(5))
def test_ends_of_a_share_are_where_the_t_test_says_so(seed):
    random = np.random.default_rng(seed)
    gap, won = 1 + 0.2 * random.normal(size=5), 0.3 + random.normal(size=5)
    found = quantization.share(won, gap)
    assert found is not None
    assert found["mean"] == pytest.approx(won.sum() / gap.sum())
    for end in ("low", "high"):
        assert scipy.stats.ttest_1samp(won - found[end] * gap, 0.0).pvalue == pytest.approx(0.05)
    assert found["low"] < found["mean"] < found["high"]
    assert quantization.share(won, gap - 1) is None


def test_claims_about_gaps_that_may_be_none_are_not_decided():
    full, settings = np.array([1.0, 2.0, 1.5]), quantization.Settings(bits=(4, 3), networks=("cnn",))
    gaps = {"enough": ([1.0, 1.1, 0.9], "reproduced"), "too little": ([0.1, 0.1, -0.1], "inconclusive")}
    for gap, outcome in gaps.values():
        plain = full[:, None] + np.array([gap, gap]).T
        losses = {("full", ""): full, ("plain", "tensor"): plain, ("equalized", "tensor"): plain - 0.5}
        (found,) = quantization._verdicts(settings, {"cnn": losses})
        assert found["outcome"] == outcome
    assert found["why"] == "plain rounding costs too little to tell"


def test_folded_normalization_does_the_same_as_that_of_all_images():
    network = classifier(3, normalized=True)
    random = np.random.default_rng(0)
    raw = {"w1": (16, 1, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 32, 3, 3), "w4": (10, 32), "b4": (10,)}
    raw |= {f"{name}{k}": (size,) for name in "bg" for k, size in ((1, 16), (2, 32), (3, 32))}
    params = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in raw.items()}
    x = here = there = jnp.asarray(random.normal(size=(50, 1, 8, 8)), jnp.float32)
    folded = _folded(params, x)
    assert set(folded) == {f"{name}{k}" for name in "wb" for k in (1, 2, 3, 4)}
    for k in (1, 2, 3):
        here, there = _convolved(params, k, here)[0], _convolved(folded, k, there)[0]
    np.testing.assert_allclose(here, there, atol=1e-4)
    assert jax.tree.map(jnp.shape, network.train(jax.random.key(0))) == jax.tree.map(jnp.shape, folded)
