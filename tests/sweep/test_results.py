"""What a sweep found: the choice, and its JSON."""

from osrm_cli.evaluation.scores import ScoredMerge, TaskScore, TaskScores, average
from osrm_cli.sweep.results import SweepResult


def results(one: float, two: float) -> TaskScores:
    return {
        "a": TaskScore({"accuracy": one}, one, examples=2, predictions=(0, 1)),
        "b": TaskScore({"pearson": two}, two, examples=1, predictions=(0.5,)),
    }


def sweep() -> SweepResult:
    points = [  # the first is best on test alone, the fourth as good as the second, but later
        ScoredMerge("ties", {"lambda": 0.1}, False, validation=results(50, 60), test=results(99, 99)),
        ScoredMerge("ties", {"lambda": 0.2}, False, validation=results(70, 60), test=results(10, 20)),
        ScoredMerge("ties", {"lambda": 0.2}, True, validation=results(60, 60), test=results(30, 40)),
        ScoredMerge("ties", {"lambda": 0.3}, False, validation=results(60, 70), test=results(90, 90)),
        ScoredMerge("emr", {"lambda": 1.0}, False, validation=results(0, 0), test=results(1, 2)),
    ]
    return SweepResult(results(80, 90), results(81, 91), points)


def test_best_is_chosen_on_validation_alone_and_the_first_of_equals() -> None:
    assert sweep().best() == [1, 2, 4]


def test_average() -> None:
    assert average(results(50, 60)) == 55


def test_json() -> None:
    facts = sweep().record()
    assert facts["best"] == [
        {"method": "ties", "calibrated": False, "point": 1},
        {"method": "ties", "calibrated": True, "point": 2},
        {"method": "emr", "calibrated": False, "point": 4},
    ]
    assert facts["points"][1] == {
        "method": "ties",
        "options": {"lambda": 0.2},
        "calibrated": False,
        "validation": {
            "tasks": {
                "a": {"headline": 70, "metrics": {"accuracy": 70}, "examples": 2},
                "b": {"headline": 60, "metrics": {"pearson": 60}, "examples": 1},
            },
            "average": 65,
        },
        "test": {
            "tasks": {
                "a": {"headline": 10, "metrics": {"accuracy": 10}, "examples": 2},
                "b": {"headline": 20, "metrics": {"pearson": 20}, "examples": 1},
            },
            "average": 15,
        },
    }
    assert facts["single"]["validation"]["average"] == 85
    assert facts["single"]["test"]["average"] == 86


def test_predictions_of_singles_and_the_best_alone() -> None:
    facts = sweep().record(predictions=True)
    wanted = {"a": [0, 1], "b": [0.5]}
    assert facts["single"]["test"]["predictions"] == facts["single"]["validation"]["predictions"] == wanted
    held = [index for index, point in enumerate(facts["points"]) if "predictions" in point["test"]]
    assert held == [1, 2, 4]
