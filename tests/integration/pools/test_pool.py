"""A pool whose actors die, hang and refuse: nothing is lost, repeated or waited for in vain."""

import logging
import os
import queue
import signal
import threading
import time
from collections import Counter

import pytest
import ray

from cluster.placement import Role
from cluster.pools.pool import Pool
from cluster.pools.pool_scaler import PoolScaler, PoolTargets
from cluster.pools.submission import GivenUp
from cluster.pools.work_router import CHUNKS_IN_FLIGHT, Unit
from configs.common import PoolConfig
from data.errors import ClusterError, DataError
from tests.patience import PATIENCE_S
from tests.workers import Worker

pytestmark = pytest.mark.usefixtures("local_ray")
MOMENT_S = 0.1
"""A time-out that is meant to pass, with nothing under it that a slow machine could fail."""


class Workers(Pool):
    def __init__(self, actors=1, *, max_items=1, refuse_from=1000, die=0, cpus=0.0):
        self.born = []
        remote = ray.remote(Worker)

        def create(name, options):
            self.born.append(name)
            refuses = len(self.born) > refuse_from
            dies = len(self.born) <= die
            return remote.options(**options, max_concurrency=8).remote(name, refuses, dies)

        role = Role("worker", actors, cpus, 0.0)
        limits = {"timeout_s": PATIENCE_S, "start_timeout_s": PATIENCE_S}
        super().__init__(role, **limits, max_items=max_items, create=create)

    def load(self, name, actor):
        ray.get(actor.ready.remote(), timeout=PATIENCE_S)

    def call(self, actor, chunk):
        return actor.work.remote(list(chunk.requests))

    def begin(self, requests):
        return self.submit([Unit((r,), 1.0) for r in requests], ())

    def answers(self, requests):
        return sorted_out(self.begin(requests))

    def let_time_out(self):
        """Let actors and the wait for the next one be overdue in a moment from now."""
        with self._change:
            self.timeout_s = self.start_timeout_s = MOMENT_S
            self._empty_since = time.monotonic()
            self._look_at = self._empty_since
        self._events.put(None)


class Advancing(Workers):
    """Whose actors say that they advance, though an answer takes long; ``asked`` counts."""

    asked = None

    def sign_of_life(self, actor):
        self.asked.release()
        return actor.seconds_since_step.remote()


def sorted_out(answers):
    """Return the requests that were done, and those that were given up with the reason."""
    done, given_up = [], {}
    for answer in answers:
        if isinstance(answer.value, GivenUp):
            given_up |= dict.fromkeys(answer.chunk.requests, answer.value.reason)
        else:
            done += [request for _, request in answer.value]
    return sorted(done), given_up


@pytest.fixture
def pool_of():
    pools = []

    def make(*args, kind=Workers, **settings):
        pools.append(kind(*args, **settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def names(count):
    return [f"r{index:02d}" for index in range(count)]


def test_all_actors_share_the_work_and_each_request_is_answered_once(pool_of):
    pool = pool_of(3, max_items=2)
    pool.ready()
    done, given_up = pool.answers(names(20))
    assert (done, given_up) == (names(20), {})
    counters = pool.counters()
    assert counters["pool/worker/actors"] == 3
    assert counters["pool/worker/lost"] == counters["pool/worker/retried"] == 0
    assert pool.answers([]) == ([], {})


def test_a_killed_actor_is_replaced_and_its_work_is_done_by_others(pool_of):
    pool = pool_of(2)
    pool.ready()
    pid = ray.get(pool.actors["worker-0"].ready.remote())
    os.kill(pid, signal.SIGSTOP)
    answers = iter(pool.begin(names(40)))
    first = [next(answers) for _ in range(40 - CHUNKS_IN_FLIGHT)]
    os.kill(pid, signal.SIGKILL)
    assert {answer.actor for answer in first} == {"worker-1"}
    assert sorted_out([*first, *answers]) == (names(40), {})
    pool.ready()
    assert pool.answers(names(4)) == (names(4), {})
    assert set(pool.actors) == {"worker-1", "worker-2"}
    counters = pool.counters()
    assert counters["pool/worker/lost"] == 1
    assert counters["pool/worker/retried"] == CHUNKS_IN_FLIGHT


def test_what_kills_its_actor_twice_alone_is_given_up_and_nothing_else(pool_of):
    pool = pool_of(2)
    pool.ready()
    done, given_up = pool.answers([*names(10), "die"])
    assert done == names(10)
    assert set(given_up) == {"die"}
    assert "alone with the last" in given_up["die"]
    counters = pool.counters()
    assert counters["pool/worker/poisoned"] == 1
    assert 2 <= counters["pool/worker/lost"] <= 3


@pytest.mark.parametrize("request_", ["lose the engine", "break"])
def test_an_actor_whose_engine_is_gone_or_that_breaks_is_replaced_too(pool_of, request_):
    pool = pool_of(1)
    pool.ready()
    done, given_up = pool.answers([*names(3), request_])
    assert (done, set(given_up)) == (names(3), {request_})
    assert 2 <= pool.counters()["pool/worker/lost"] <= 3  # alone the second or the third time


def test_a_hung_actor_is_found_by_its_deadline(pool_of):
    pool = pool_of(2)
    pool.ready()
    answers = iter(pool.begin([*names(6), "hang"]))
    done = [next(answers) for _ in names(6)]  # from now on actors hold nothing but "hang"
    pool.let_time_out()
    done, given_up = sorted_out([*done, *answers])
    assert done == names(6)
    reason = f"killed 2 actors, alone with the last: no answer within timeout_s={MOMENT_S:g}"
    assert given_up == {"hang": reason}
    assert pool.counters()["pool/worker/lost"] == 2


def test_an_actor_that_advances_is_not_hung_however_long_its_answer_takes(pool_of):
    pool = pool_of(kind=Advancing)
    pool.asked = threading.Semaphore(0)
    pool.ready()
    submission = pool.begin(["hang"])
    pool.let_time_out()
    for _ in range(3):
        assert pool.asked.acquire(timeout=PATIENCE_S)
    ray.get(pool.actors["worker-0"].let_go.remote())
    assert sorted_out(submission) == (["hang"], {})
    assert pool.counters()["pool/worker/lost"] == 0
    pool.timeout_s = PATIENCE_S


def test_answers_that_lie_there_when_the_deadline_passes_are_heard_first(pool_of):
    pool = pool_of(2)
    pool.ready()
    hear, answered = pool._hear, queue.SimpleQueue()
    pool._hear = lambda *answer: answered.put(answer)
    submission = pool.begin(names(2))
    both = [answered.get(timeout=PATIENCE_S) for _ in range(2)]
    with pool._change:  # as if this process had paused since
        pool.timeout_s, pool._look_at = 0.0, time.monotonic()
        for answer in both:
            hear(*answer)
    assert len(list(submission)) == 2
    pool.timeout_s = PATIENCE_S
    assert pool.counters()["pool/worker/lost"] == 0


def test_what_an_actor_refuses_on_purpose_reaches_who_asked_and_hurts_nobody_else(pool_of):
    pool = pool_of(1)
    pool.ready()
    with pytest.raises(DataError, match="no such picture"):
        pool.answers(["refuse"])
    assert pool.answers(names(3)) == (names(3), {})
    assert pool.born == ["worker-0"]


def test_a_start_that_is_refused_ends_the_wait_for_the_pool(pool_of):
    pool = pool_of(2, refuse_from=1)
    with pytest.raises(DataError, match=r"worker-. has no model"):
        pool.ready()


def test_a_failure_before_the_pool_was_ready_is_seen_though_others_come_up_later(pool_of):
    pool = pool_of(3, refuse_from=1)
    with pool._change:
        pool._change.wait_for(lambda: pool._serving and len(pool._starting) == 0, PATIENCE_S)
    with pytest.raises(DataError, match="has no model"):
        pool.ready()


def test_a_first_start_that_dies_is_tried_again_once(pool_of):
    pool = pool_of(2, die=1)
    pool.ready()
    assert len(pool.born) == 3
    assert pool.answers(names(3)) == (names(3), {})
    assert pool.counters()["pool/worker/lost"] == 0
    pool.close()
    with pytest.raises(ClusterError, match=r"worker-1 did not start: ActorDied.*; see its log"):
        pool_of(1, die=2).ready()


def test_actors_that_all_break_end_the_wait_instead_of_being_replaced_for_ever(pool_of):
    pool = pool_of(1)
    pool.ready()
    with pytest.raises(ClusterError, match="7 actors were lost since the last answer"):
        pool.answers(["break"] * 20)
    pool.close()
    with pytest.raises(ClusterError, match="closed"):
        pool.answers(["r00"])


def test_a_pool_that_loses_its_last_actor_for_good_says_so(pool_of):
    pool = pool_of(1, refuse_from=1)
    pool.ready()
    with pytest.raises(ClusterError, match=r"no actor is left .* the last: worker-. has no model"):
        pool.answers([*names(3), "die"])


def hold_starts(pool):
    """Let actors start but not serve; return an event for the first one, and one that ends it."""
    load, started, in_time = pool.load, threading.Event(), threading.Event()

    def load_and_wait(name, actor):
        load(name, actor)
        started.set()
        in_time.wait()

    pool.load = load_and_wait
    return started, in_time


def test_a_pool_whose_next_actor_does_not_come_in_time_says_so(pool_of):
    pool = pool_of(1)
    pool.ready()
    started, in_time = hold_starts(pool)
    submission = pool.begin([*names(3), "die"])
    assert started.wait(PATIENCE_S)
    pool.let_time_out()
    with pytest.raises(ClusterError, match=r"none came up in \d+ s; not ready yet: worker-1; see"):
        list(submission)
    pool.timeout_s = pool.start_timeout_s = PATIENCE_S
    in_time.set()
    pool.ready()
    assert pool.answers(names(3)) == (names(3), {})


def test_an_empty_pool_may_take_longer_while_nobody_waits(pool_of):
    pool = pool_of(1)
    pool.ready()
    started, in_time = hold_starts(pool)
    pool.lose("worker-0", "told to")
    assert started.wait(PATIENCE_S)
    with pool._change:
        pool._empty_since -= 2 * pool.start_timeout_s  # as if that long had passed
        submission = pool.begin(names(3))
        pool._give_up()
    in_time.set()
    assert sorted_out(submission) == (names(3), {})


def test_a_pool_grows_and_shrinks_between_and_during_calls(pool_of):
    pool = pool_of(1)
    pool.ready()
    for size in (3, 1, 2):
        submission = pool.begin(names(30))
        pool.resize(size)
        found = Counter(request for answer in submission for _, request in answer.value)
        assert found == Counter(names(30))
        pool.ready()
        assert len(pool.actors) == size
    assert pool.counters()["pool/worker/lost"] == 0


class Said(logging.Handler):
    """Tells when something was logged."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        self.said = threading.Event()

    def emit(self, record):
        if self.text in record.getMessage():
            self.said.set()


def test_a_pool_that_grows_on_a_full_cluster_says_what_waits(pool_of):
    pool = pool_of(1, cpus=1.5)
    pool.ready()
    waits = Said("worker-1: no place yet: waited 2 s for 1 x {'CPU': 1.5}; free now: {'CPU': 0.")
    logging.getLogger("cluster.placement").addHandler(waits)
    try:
        pool.resize(2)
        assert waits.said.wait(PATIENCE_S)
    finally:
        logging.getLogger("cluster.placement").removeHandler(waits)
    pool.resize(1)
    assert pool.answers(names(3)) == (names(3), {})


def test_a_pool_with_a_policy_grows_under_load(pool_of):
    pool = pool_of(1)
    pool.ready()
    targets = ray.remote(PoolTargets).options(num_cpus=0).remote(("worker",))
    policy = PoolConfig(min_actors=1, max_actors=3)
    scaler = PoolScaler({"worker": pool}, {"worker": policy}, targets)

    def quiet_step():
        """Return what a step of a second brings in which nothing begins or ends."""
        pool.stats()
        pool._measured -= 1.0
        return scaler.step()

    pool.answers(names(3))
    assert quiet_step()["pool/worker/waiting"] == 0
    assert pool.size == 1
    submission = iter(pool.begin([*names(30), *["hang"] * 30]))
    for _ in names(30):
        next(submission)
    metrics = quiet_step()
    assert metrics["pool/worker/waiting"] == pytest.approx(30 - CHUNKS_IN_FLIGHT)
    assert metrics["pool/worker/busy"] == pytest.approx(1)
    assert pool.size == 2


def test_nobody_waits_for_a_pool_that_is_closed(pool_of):
    pool = pool_of(1)
    pool.ready()
    submission = pool.begin(["hang"])
    pool.close()
    with pytest.raises(ClusterError, match="closed"):
        list(submission)
