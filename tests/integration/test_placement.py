"""What actors see of GPUs, which are numbers to Ray, on nodes where Ray is told to hide none."""

import os

import ray

from cluster.placement import Role, actor_options, release, reserve


def visible() -> tuple[str | None, list[int]]:
    """Return what CUDA would see in this process, and what Ray has lent it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES"), ray.get_gpu_ids()


class Looks:
    """Runs a function in an actor."""

    def at(self, function):
        return function()


def test_an_actor_sees_the_gpus_that_it_was_lent_and_no_others(local_ray) -> None:
    roles = [Role("none", 1, 0.0, 0.0), Role("two", 1, 0.0, 2.0), Role("part", 1, 0.0, 0.3)]
    groups = reserve(roles)
    looks = ray.remote(Looks)
    actors = {
        role.name: looks.options(**actor_options(role, groups[role.name][0], 0, bundle=0)).remote()
        for role in roles
    }
    seen = {name: ray.get(actor.at.remote(visible)) for name, actor in actors.items()}
    for actor in actors.values():
        ray.kill(actor)
    release(groups)
    assert seen["none"] == ("", [])
    for name, count in (("two", 2), ("part", 1)):
        shown, lent = seen[name]
        assert len(lent) == count
        assert shown == ",".join(map(str, lent))
