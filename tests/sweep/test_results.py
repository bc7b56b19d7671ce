"""What a sweep found: the choice, and its JSON."""

from osrm_cli.sweep.results import Result, Results, SweepPoint, SweepResult, average


def results(one: float, two: float) -> Results:
    return {"a": Result(one, {"accuracy": one}, (0, 1)), "b": Result(two, {"pearson": two}, (0.5,))}


def sweep() -> SweepResult:
    points = [
        SweepPoint("ties", {"lambda": 0.1}, False, results(50, 60), results(99, 99)),  # best on test alone
        SweepPoint("ties", {"lambda": 0.2}, False, results(70, 60), results(10, 20)),
        SweepPoint("ties", {"lambda": 0.2}, True, results(60, 60), results(30, 40)),
        SweepPoint("ties", {"lambda": 0.3}, False, results(60, 70), results(90, 90)),  # as good, but later
        SweepPoint("emr", {"lambda": 1.0}, False, results(0, 0), results(1, 2)),
    ]
    return SweepResult(results(80, 90), results(81, 91), points)


def test_best_is_chosen_on_validation_alone_and_the_first_of_equals() -> None:
    assert sweep().best() == [1, 2, 4]


def test_average() -> None:
    assert average(results(50, 60)) == 55


def test_json() -> None:
    facts = sweep().facts()
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
    facts = sweep().facts(predictions=True)
    wanted = {"a": [0, 1], "b": [0.5]}
    assert facts["single"]["test"]["predictions"] == facts["single"]["validation"]["predictions"] == wanted
    held = [index for index, point in enumerate(facts["points"]) if "predictions" in point["test"]]
    assert held == [1, 2, 4]
