"""The interface of questions: a new kind is asked, certified and reported, and costs what it foresees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetrax as sx
from symmetrax.discovery._cost import Cost
from symmetrax.discovery._find import carry_out
from symmetrax.discovery._found import Look
from symmetrax.discovery._plan import Plan
from symmetrax.discovery._question import Answer, Question
from symmetrax.discovery._questions import QUESTIONS
from symmetrax.discovery._scales import Scales
from symmetrax.discovery._scope import GROUPS, Scope
from symmetrax.discovery._sites import Spec
from symmetrax.discovery._spaces import Refinement, Space

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
X, Y = np.random.default_rng(3).normal(size=(2, 12, 4)).astype(np.float32)


def perceptron(activation=jnp.tanh):
    """The loss and the parameters of a perceptron with five hidden units."""
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 4), "b": (5,), "out": (4, 5)}
    params = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}

    def loss(p):
        return jnp.mean((activation(X @ p["w"].T + p["b"]) @ p["out"].T - Y) ** 2)

    return loss, params


def searched(questions, groups=GROUPS, activation=jnp.tanh, budget=None, trials=2):
    loss, params = perceptron(activation)
    plan = Plan.of(params, groups, None, trials, questions=questions)
    return carry_out(plan, loss, params, KEY, budget=budget)


# A kind of question that is not in the package: equal lengths suggest that signs of units flip together. The
# first option that it nominates lacks one of the arrays.


@dataclasses.dataclass(frozen=True)
class EqualLengths(Question):
    size: int
    losses: int = 0

    finds = (sx.groups.SignDiagonal,)

    def cost(self, scope):
        return Cost(others=self.losses)

    def answers(self, evidence):
        if evidence.lacks(self.losses, "signs by length", *self.finds):
            return
        for _ in range(self.losses):
            evidence.loss.value(evidence.loss.leaves, evidence.loss.batch)
        sites = [place.site(self.size) for place in evidence.live if place.length == self.size]
        specs = tuple(Spec(site) for site in sites)
        options = [Space(sx.groups.SignDiagonal(self.size), part, (0.0, 1.0)) for part in (specs[1:], specs)]
        yield Answer([options], Look("signs by length", ((), self.size), len(sites), 1, np.inf))


def test_a_new_kind_of_question_is_asked_certified_and_reported():
    found = searched([EqualLengths(5)])
    assert [(str(one.group), one.certificate.outcome) for one in found] == [("SignDiagonal(5)", "exact")]
    assert dict(found[0].symmetry.specs) == {"b": "e0", "w": "e0 _", "out": "_ e0"}
    assert [look.group for look in found.looked] == ["signs by length"]
    assert found.evaluations <= found.cost.total
    assert "sx.groups.SignDiagonal(5)" in found.text


def test_a_nominee_without_a_certificate_is_rejected():
    found = searched([EqualLengths(5)], activation=jax.nn.gelu)
    assert not found.found
    assert len(found.rejected) == 1
    assert "1 candidates failed" in str(found)


def test_a_question_is_asked_only_if_its_groups_are_wanted():
    found = searched([EqualLengths(5), Scales()], groups=[sx.groups.PositiveDiagonal])
    assert not found.found
    assert {look.group for look in found.looked} == {"scales"}
    assert found.evaluations <= found.cost.total


def test_what_questions_find_is_known_to_later_ones():
    """Asked beside all others, at the end, the new kind nominates what is known already."""
    alone = searched(QUESTIONS)
    both = searched([*QUESTIONS, EqualLengths(5)])
    assert alone == both
    # Nothing implies the option that lacks an array, so it is certified; the other one needs no certificate.
    assert both.evaluations == alone.evaluations + both[0].certificate.trials


def test_a_question_foresees_its_cost_and_records_what_the_budget_leaves_out():
    found = searched([EqualLengths(5, losses=7)])
    assert found.cost.others == 7
    assert "7 for other questions" in str(found.cost)
    assert found.to_json()["cost"]["others"] == 7
    assert found.evaluations <= found.cost.total
    plan = Plan.of(perceptron()[1], GROUPS, None, 2, questions=[EqualLengths(5, losses=7)])
    least = plan.cost.checks + plan.cost.points + 1 + 2 * 2
    some = searched([EqualLengths(5, losses=7)], budget=least)
    assert not some.found
    assert some.unfinished == ("SignDiagonal",)
    assert any("signs by length (7 evaluations)" in note for note in some.notes)
    assert some.evaluations <= least


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu])
@pytest.mark.parametrize("question", sorted({type(one).__name__ for one in QUESTIONS}))
def test_costs_of_every_question_alone_bound_what_is_spent(question, activation):
    found = searched([one for one in QUESTIONS if type(one).__name__ == question], activation=activation)
    assert found.evaluations <= found.cost.total


def test_costs_of_a_plan_are_those_of_its_questions():
    """Points are shared; a question that is asked twice counts once; all others add up."""
    _, params = perceptron()
    scope = Scope.of(params)
    own = [question.cost(scope) for question in dict.fromkeys(QUESTIONS)]
    cost = Plan.of(params, GROUPS, None, 3).cost
    assert cost.points == max(*(one.points for one in own), *(question.kept(scope) for question in QUESTIONS))
    assert cost.permutations == sum(one.permutations for one in own) > 0
    assert cost.segments == sum(one.segments for one in own) > 0
    assert cost.signs == sum(one.signs for one in own) > 0
    assert cost.total == sum((cost.points, cost.permutations, cost.segments, cost.signs)) + (
        cost.certificates + cost.idle + cost.checks
    )
    assert "others" not in cost.to_json()


def test_every_group_is_found_by_some_question():
    assert {group for question in QUESTIONS for group in question.finds} == set(GROUPS)


# Refinements: they replace the space that they split, if they hold.


@dataclasses.dataclass(frozen=True)
class SameScales(Refinement):
    """Scales of the hidden units under another name, or with a wrong charge."""

    charge: str
    group = sx.groups.PositiveDiagonal(5)
    gap = (0.0, 0.5)

    @property
    def axes(self):
        return frozenset({("w", 0), ("b", 0), ("out", 1)})

    def named(self, number):
        name = f"s{number}"
        return {name: self.group}, {"w": f"{name} _", "b": name, "out": f"_ {name}{self.charge}"}


@dataclasses.dataclass(frozen=True)
class Split(Question):
    charge: str
    finds = (sx.groups.PositiveDiagonal,)

    def answers(self, evidence):
        split = SameScales(self.charge)
        yield Answer([[split]])
        assert evidence.holds(split) == (self.charge == "*")  # the next answer knows the certificate


@pytest.mark.parametrize("charge", ["*", "^2"])
def test_a_refinement_replaces_what_it_splits_or_is_forgotten(charge):
    scales = [sx.groups.PositiveDiagonal]
    plain = searched([Scales()], scales, jax.nn.relu)
    split = searched([Scales(), Split(charge)], scales, jax.nn.relu)
    assert [str(one.group) for one in split] == [str(one.group) for one in plain] == ["PositiveDiagonal(5)"]
    assert split[0].gap == ((0.0, 0.5) if charge == "*" else plain[0].gap)
    assert split.rejected == plain.rejected
    assert split.evaluations == plain.evaluations + split[0].certificate.trials
