"""Lie groups from gradients: relations between moments of gradients and parameters.

If a group acts on some axes, the derivative of the loss along it is zero: the moments M = G W^T of gradient
and parameter along those axes sum to zero. All matrix groups here contain rotations, so the antisymmetric
parts of the moments find them, layout by layout; the symmetric parts then identify the group. Scales are
relations between the diagonals, and their coefficients are the charges.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from symmetrax.discovery._moments import Moments, Products, stacked
from symmetrax.discovery._places import Place, scale_shapes, scale_sites
from symmetrax.discovery._points import Measured
from symmetrax.discovery._relations import NEARLY, Relation, charges, relations
from symmetrax.discovery._sites import Shape, Site
from symmetrax.discovery._spaces import Space, Spec, implied, together, with_per
from symmetrax.groups._diagonal import Permutation, PositiveDiagonal, SignDiagonal
from symmetrax.groups._matrices import GeneralLinear, Orthogonal, ScaledRotation

#: Maximum number of zero-mean directions that are compared.
DIRECTIONS = 24


@dataclasses.dataclass(frozen=True)
class Look:
    """One question: the relations between sites of one shape, and how close the nearest non-relation came.

    If not everything was tried, `only` says what was; nothing else can be ruled out.
    """

    group: str
    shape: Shape
    sites: int
    found: int
    nearest: float
    only: str = ""


def matrix_groups(
    products: Products,
    questions: Iterable[tuple[Shape, list[Site]]],
    groups: Sequence[type],
    tolerance: float,
    rng: np.random.Generator,
    known: Sequence[Space],
    nearly: Sequence[Space],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Candidates for the matrix groups of each shape on its sites; ask for large matrices first.

    A candidate is a list of spaces to try in order. `known` are the spaces found so far, `nearly` those that
    hold up to a defect; both may grow between answers.
    """
    for shape, sites in questions:
        moments = Moments(products, shape, sites, rng)
        columns = moments.antisymmetric()
        probe = with_per(ScaledRotation, shape, unit=True) if shape[1] == 2 else with_per(Orthogonal, shape)
        given = implied(sites, probe, known)
        found, nearest = relations(columns, tolerance, given, implied(sites, probe, nearly))
        spaces = [
            options
            for relation in found
            if _even(relation) and (options := _options(moments, relation, shape, groups, tolerance))
        ]
        if shape[1] == 2:  # pairs known to rotate may have a larger group
            turning = [Relation(relation, 0.0, nearest) for relation in given if np.all(relation >= 0)]
            options = (_options(moments, relation, shape, groups, tolerance) for relation in turning)
            spaces += [found[:1] for found in options if found and isinstance(found[0].group, GeneralLinear)]
        yield Look("matrices", shape, len(sites), len(spaces), nearest), spaces


def _even(relation: Relation) -> bool:
    """Whether all coefficients are equal, as they are for rotations."""
    values = relation.coefficients[relation.support]
    return bool(np.all(np.abs(values / values[0] - 1) < 0.1))


def _options(
    moments: Moments, relation: Relation, shape: Shape, groups: Sequence[type], tolerance: float
) -> list[Space]:
    """The groups whose rotations these may be, large ones first; the symmetric moments decide."""
    specs = relation.support
    limit = tolerance if relation.inside <= tolerance else NEARLY
    tests = [(GeneralLinear, moments.symmetric)]
    tests += [(ScaledRotation, moments.trace)] if shape[1] == 2 else []
    found = []
    for group, columns in tests:
        stretched = relations(columns(specs), limit)[0]
        signs = [charges(other.coefficients) for other in stretched if len(other.support) == len(specs)]
        signs = [sign for sign in signs if np.all(np.abs(sign) == 1)]
        if signs and group in groups:
            made = [Spec(moments.sites[k], power) for k, power in zip(specs, signs[0], strict=True)]
            gap = (max(relation.inside, stretched[0].inside), min(relation.outside, stretched[0].outside))
            found.append(Space(with_per(group, shape), tuple(made), gap))
    plain = tuple(Spec(moments.sites[k]) for k in specs)
    gap = (relation.inside, relation.outside)
    if Orthogonal in groups:
        found.append(Space(with_per(Orthogonal, shape), plain, gap))
    if shape[1] == 2 and ScaledRotation in groups:
        found.append(Space(with_per(ScaledRotation, shape, unit=True), plain, gap))
    return found


def centred_rotations(
    measured: Measured,
    places: Sequence[Place],
    tolerance: float,
    known: Sequence[Space],
    nearly: Sequence[Space],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Candidates for rotations that fix the mean of an axis, as in residual streams read by LayerNorm.

    They are relevant if not all rotations are symmetries.
    """
    for size in sorted(
        {place.length for place in places if not place.lead and place.length > 2}, reverse=True
    ):
        shape: Shape = ((), size)
        at = [place for place in places if not place.lead and place.length == size]
        sites = [place.site(size) for place in at]
        frame = _frame(size, min(DIRECTIONS, size - 1))
        parts = []
        for site in sites:
            values, squares = [], []
            for point in measured.points:
                g, w = (
                    frame.T @ np.moveaxis(x[site.path].reshape(site.shape), site.axis, 0).reshape(size, -1)
                    for x in (point.gradient, point.leaves)
                )
                moment, square = np.real(g @ w.T), np.abs(g) ** 2 @ np.abs(w.T) ** 2
                above = np.triu_indices(len(moment), 1)
                values.append((moment - moment.T)[above])
                squares.append((square + square.T)[above].sum())
            parts.append((np.concatenate(values), np.sqrt(np.sum(squares))))
        columns = stacked(parts)
        if len(columns.values) < len(sites) + 4:
            continue
        given = (implied(sites, with_per(Orthogonal, shape), spaces) for spaces in (known, nearly))
        found, nearest = relations(columns, tolerance, *given)
        spaces = [
            [
                Space(
                    Orthogonal(size, fix="mean"),
                    tuple(Spec(sites[k]) for k in relation.support),
                    (relation.inside, relation.outside),
                )
            ]
            for relation in found
            if _even(relation)
        ]
        yield Look("rotations that keep the mean", shape, len(sites), len(spaces), nearest), spaces


def _frame(size: int, count: int) -> np.ndarray:
    """Orthonormal vectors whose entries sum to zero."""
    rng = np.random.default_rng(size)
    drawn = rng.normal(size=(size, count))
    return np.linalg.qr(drawn - drawn.mean(axis=0))[0]


def scales(
    measured: Measured,
    places: Sequence[Place],
    tolerance: float,
    rng: np.random.Generator,
    known: Sequence[Space],
    nearly: Sequence[Space],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Candidates for positive scalings, with their charges: many scales first, single ones last."""
    at = [place for place in places if place in measured.products]
    for shape in scale_shapes(at):
        sites = scale_sites(shape, at)
        parts = _products(measured, sites, _scale_rows(measured, shape, len(sites), rng))
        group = with_per(PositiveDiagonal, shape)
        given = (implied(sites, group, spaces) for spaces in (known, nearly))
        found, nearest = relations(stacked(parts), tolerance, *given)
        spaces = []
        for relation in found:
            powers = charges(relation.coefficients)
            specs = together([Spec(sites[k], float(powers[k])) for k in relation.support])
            spaces.append([Space(group, specs, (relation.inside, relation.outside))])
        yield Look("scales", shape, len(sites), len(found), nearest), spaces


def shifted_scales(
    measured: Measured,
    places: Sequence[Place],
    tolerance: float,
    rng: np.random.Generator,
    known: Sequence[Space],
) -> Iterator[tuple[Look, list[list[Space]]]]:
    """Candidates for scales of vectors plus a constant: gains that enter as 1 + w.

    If w + c scales, then gradient times w and c times the gradient form a single term of a relation: with the
    gradients as separate columns, the coefficients determine c. The search covers vectors without scales so
    far, and accepts a constant c that is a multiple of 1/2; a small constant is reported as a defect of plain
    scales.
    """
    at = [place for place in places if place in measured.products]
    for shape in scale_shapes(at):
        sites = scale_sites(shape, at)
        taken = {
            spec.site.path
            for space in known
            if not isinstance(space.group, Permutation | SignDiagonal)
            for spec in space.specs
        }
        lone = [
            k
            for k, site in enumerate(sites)
            if site.path not in taken and site.copies == 1 and site.whole and _place(site) in measured.slopes
        ]
        rows = _scale_rows(measured, shape, len(sites) + len(lone), rng)
        if not lone or len(rows[0]) < len(sites) + len(lone) + 4:
            continue
        slopes = [_units(measured.slopes[_place(sites[k])], sites[k])[rows] for k in lone]
        slopes = [(slope, float(np.linalg.norm(slope))) for slope in slopes]
        given = [
            np.append(r, np.zeros(len(lone)))
            for r in implied(sites, with_per(PositiveDiagonal, shape), known)
        ]
        # Translations, for instance of two biases that are added, are relations between gradients alone.
        given += [
            np.append(np.zeros(len(sites)), relation.coefficients)
            for relation in relations(stacked(slopes), tolerance)[0]
        ]
        columns = stacked([*_products(measured, sites, rows), *slopes])
        found, nearest = relations(columns, tolerance, given)
        spaces = [
            [space]
            for relation in found
            if relation.inside <= tolerance and (space := _shifted(relation, sites, lone, shape))
        ]
        yield Look("scales of vectors plus constants", shape, len(sites), len(spaces), nearest), spaces


def _shifted(relation: Relation, sites: Sequence[Site], lone: Sequence[int], shape: Shape) -> Space | None:
    """Converts a relation between products and gradients to scales, if it has constants."""
    products, slopes = np.split(relation.coefficients, [len(sites)])
    constants = {k: slope for k, slope in zip(lone, slopes, strict=True) if slope}
    if not constants or any(products[k] == 0 for k in constants):
        return None
    powers, specs = charges(products), []
    for k, site in enumerate(sites):
        if products[k]:
            exact = float(constants.get(k, 0.0) / products[k])
            shift = round(2 * exact) / 2
            if abs(shift - exact) > 1e-5 or (k in constants and not shift):
                return None  # a defect of the scales, not a constant in the model
            specs.append(Spec(dataclasses.replace(site, shift=shift), float(powers[k])))
    return Space(with_per(PositiveDiagonal, shape), tuple(specs), (relation.inside, relation.outside))


def _scale_rows(
    measured: Measured, shape: Shape, columns: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses points and units that give enough rows for this many columns."""
    units, points = int(np.prod(shape[0])) * shape[1], len(next(iter(measured.products.values())))
    chosen = rng.permutation(points * units)[: max(3 * columns + 16, 64)]
    return np.divmod(np.sort(chosen), units)


def _products(
    measured: Measured, sites: Sequence[Site], rows: tuple[np.ndarray, np.ndarray]
) -> list[tuple[np.ndarray, float]]:
    """Gradient times parameter per unit, at some points and units, and its length if unrelated."""
    parts = []
    for site in sites:
        terms = _units(measured.products[_place(site)], site)
        part = site.positions.size / site.length / terms.shape[1]  # of the array's products, in each row
        parts.append((terms[rows], np.sqrt(part * measured.sizes[site.path][rows[0]].sum())))
    return parts


def _place(site: Site) -> Place:
    return Place(site.path, site.shape, site.axis, site.lead)


def _units(terms: np.ndarray, site: Site) -> np.ndarray:
    """Sums terms along an axis over the copies of each unit: (points, units)."""
    return terms[:, :, site.positions].sum(axis=-1).reshape(len(terms), -1)
