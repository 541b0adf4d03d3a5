"""What is kept of every trace, paid or dropped."""

from cluster.run.trajectory_rows import SCHEMA, trajectory_rows
from data.types import DroppedTrajectory, GroupKey, Kind, Picture, Side, TrajectoryKey
from tests.builders import make_pair, make_scored, make_trajectory

PAIRS = {serial: make_pair(f"p{serial}") for serial in range(2)}
PAID = make_trajectory(0, Side.QUERY, text="a good trace")
ALIKE = make_trajectory(0, Side.TARGET, text="paid like its siblings")
LOST = make_trajectory(1, Side.TARGET, text="a lost trace")
NEVER = TrajectoryKey(GroupKey(1, "p1", Side.QUERY), 0)


def rows(*, broken=False):
    return trajectory_rows(
        [PAID, LOST, ALIKE],
        [make_scored(PAID, total=0.4), make_scored(ALIKE, total=0.4)],
        [DroppedTrajectory(LOST.key, "judge_failed"), DroppedTrajectory(NEVER, "bad_picture", "x")],
        pairs=PAIRS,
        contents={PAID.key: (Picture("/a.png", Kind.IMAGE), "what?"), LOST.key: ("this",)},
        advantages={PAID.key: 1.5, ALIKE.key: 0.0},
        taught={PAID.key},
        broken=broken,
        templates="brief",
    )


def test_every_trace_that_was_asked_for_has_a_row():
    asked = [str(one) for one in (PAID.key, ALIKE.key, LOST.key, NEVER)]
    assert [row["key"] for row in rows()] == asked
    assert all(row.keys() <= set(SCHEMA.names) for row in rows())


def test_a_paid_trace_keeps_prompt_text_reward_and_advantage():
    row = rows()[0]
    assert (row["prompt"], row["pictures"], row["text"]) == ("what?", ["/a.png"], "a good trace")
    assert (row["reward/total"], row["advantage"], row["dropped"]) == (0.4, 1.5, None)
    assert row["templates"].startswith("brief-")


def test_a_paid_trace_that_teaches_nothing_says_why():
    row = rows()[1]
    assert (row["reward/total"], row["advantage"], row["dropped"]) == (0.4, 0.0, "no_spread")


def test_a_broken_step_trained_none():
    reasons = [row["dropped"] for row in rows(broken=True)]
    assert reasons == ["broken_step", "no_spread", "judge_failed", "bad_picture: x"]


def test_a_dropped_trace_keeps_its_text_and_says_why():
    row = rows()[2]
    assert (row["text"], row["prompt"], row["dropped"]) == ("a lost trace", "this", "judge_failed")
    assert "reward/total" not in row


def test_what_was_never_sampled_is_named_too():
    row = rows()[3]
    assert (row["pair"], row["side"], row["dropped"]) == ("p1", "query", "bad_picture: x")
    assert "text" not in row
