"""How plots look: every arm is told from every other, and every path is inside its frame."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from symmetrax.studies.core._styles import KNOWN, styles
from symmetrax.studies.core._trajectories import FAR, frames_of

names = st.lists(st.one_of(st.sampled_from(sorted(KNOWN)), st.text(max_size=4)), max_size=40, unique=True)


@given(names=names)
def test_no_two_arms_of_a_figure_look_alike(names):
    found = styles(names)
    assert list(found) == names
    looks = [(style["color"], style["linestyle"]) for style in found.values()]
    assert len(set(looks)) == len(looks)


@given(names=names)
def test_solid_lines_lie_below_dashed_ones_and_are_wider(names):
    for one, other in itertools.combinations(styles(names).values(), 2):
        if (one["linestyle"] == "-") != (other["linestyle"] == "-"):
            solid, dashed = (one, other) if one["linestyle"] == "-" else (other, one)
            assert solid["zorder"] < dashed["zorder"]
            assert solid["linewidth"] > dashed["linewidth"]


@given(
    seed=st.integers(0, 1000),
    scales=st.lists(st.floats(-6, 6), min_size=1, max_size=5),
    broken=st.booleans(),
)
def test_every_path_is_inside_its_frame(seed, scales, broken):
    random = np.random.default_rng(seed)
    paths = {f"arm{i}": random.normal(size=(7, 2)) * 10.0**scale for i, scale in enumerate(scales)}
    if broken:
        paths["arm0"][-1] = np.nan
    frames = frames_of(paths)
    for name, path in paths.items():
        inside = path[np.isfinite(path).all(axis=1)]
        low, high = frames[name].T
        assert np.all((low <= inside) & (inside <= high))
        assert np.ptp(high - low) < 1e-6 * np.max(high - low)  # a square
    # Nobody shares a frame with an arm that goes much farther than the middle one.
    span = {name: np.nanmax(np.nanmax(path, 0) - np.nanmin(path, 0)) for name, path in paths.items()}
    middle = sorted(span.values())[(len(span) - 1) // 2]
    for one, other in itertools.permutations(paths, 2):
        if span[one] <= FAR * middle < span[other]:
            assert not np.array_equal(frames[one], frames[other])
