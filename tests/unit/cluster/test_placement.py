"""A plan is compared with the cluster before anything starts."""

import pytest

from cluster.placement import Role, check_resources
from data.errors import NotEnoughResources

ROLES = (Role("rollout", 2, 0.5, 0.0), Role("learner", 2, 1.0, 1.0))


def test_a_plan_that_fits_exactly_passes():
    check_resources(ROLES, {"CPU": 3.0, "GPU": 2.0})


def test_shares_that_add_up_are_not_refused_for_rounding():
    check_resources([Role("a", 10, 0.1, 0.0)], {"CPU": 1.0})


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"CPU": 2.0, "GPU": 2.0}, "3 CPUs asked, 2 in the cluster"),
        ({"CPU": 8.0}, "2 GPUs asked, 0 in the cluster"),
        ({}, "3 CPUs asked, 0 in the cluster and 2 GPUs asked, 0 in the cluster"),
    ],
)
def test_a_plan_that_cannot_fit_names_every_role_and_what_to_change(cluster, words):
    with pytest.raises(NotEnoughResources) as caught:
        check_resources(ROLES, cluster)
    text = str(caught.value)
    assert words in text
    assert "rollout: 2 x (0.5 CPU, 0 GPU); learner: 2 x (1 CPU, 1 GPU)" in text
    assert "Lower actors/ranks" in text


def test_a_job_without_actors_fits_anywhere():
    check_resources([], {})
