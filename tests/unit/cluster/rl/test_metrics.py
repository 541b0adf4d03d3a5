"""What the metrics of several rounds are as one."""

from cluster.rl.metrics import join_metrics


def test_metrics_of_rounds_are_means_by_trace_and_counts_are_sums():
    first = {
        "repair/refused": 3.0,
        "candidates/size": 10.0,
        "alarm/length": 1.0,
        "judge/failed": 2.0,
        "candidates/size_max": 7.0,
    }
    second = {
        "candidates/size": 40.0,
        "judge/failed": 1.0,
        "candidates/size_max": 5.0,
        "hack/all_right": 0.5,
    }
    assert join_metrics([(first, 20), (second, 10)]) == {
        "repair/refused": 3.0,
        "candidates/size": 20.0,
        "alarm/length": 1.0,
        "judge/failed": 3.0,
        "candidates/size_max": 7.0,
        "hack/all_right": 0.5,
    }


def test_metrics_of_rounds_in_which_nothing_was_scored_are_plain_means():
    assert join_metrics([({"hack/x": 1.0}, 0), ({"hack/x": 3.0}, 0)]) == {"hack/x": 2.0}
