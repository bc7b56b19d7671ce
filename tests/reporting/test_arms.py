"""Arms and their names."""

from dataclasses import replace
from typing import Any

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.evaluation.score_files import AdapterRecord, ScoreFile
from osrm_cli.reporting.arms import find_baseline_arm, group_arms, make_arm, read_arm_settings
from tests.reporting.factories import adapters

START = ("objective", "statistic", "rank", "alpha", "a_scale", "eps", "examples")


def file(name: str, tasks: tuple[str, ...] = ("cola", "qqp"), seed: int = 0, **settings: Any) -> ScoreFile:
    start = {key: value for key, value in settings.items() if key in START}
    train = {key: value for key, value in settings.items() if key not in START}
    made = {task: AdapterRecord(**record) for task, record in adapters(tasks, seed, start, train).items()}
    return ScoreFile(name, "", "dev", "float32", made, {}, ())


def remake(made: ScoreFile, task: str, part: str, **settings: Any) -> None:
    """Say that one adapter was made with other settings."""
    record = made.adapters[task]
    changed = replace(record, **{part: {**(getattr(record, part) or {}), **settings}})
    made.adapters[task] = changed  # type: ignore[index]


def labels(*settings: dict[str, Any]) -> list[str]:
    found = group_arms([file(str(place), **one) for place, one in enumerate(settings)]).arms
    return [arm.label for arm in found]


KAIMING, OSRM, GEVD = ({"objective": name} for name in ("kaiming", "osrm", "gevd"))


def test_what_all_share_is_not_told() -> None:
    assert labels({**KAIMING, "lr": 1e-3, "rank": 16}, {**OSRM, "lr": 1e-3, "rank": 16}) == ["kaiming", "osrm"]


@pytest.mark.parametrize(
    ("unusual", "label"),
    [
        ({"a_scale": "orthonormal"}, "kaiming × orthonormal norm"),
        ({"interference_penalty": 3.0}, "kaiming + penalty 3"),
        ({"interference_penalty": 0.3, "penalty_unit": "own"}, "kaiming + penalty 0.3"),
        ({"freeze": "A"}, "kaiming + frozen A"),
        ({"rank": 16}, "kaiming, rank 16"),
        ({"limit": 500}, "kaiming, limit 500"),
        ({"limit": None}, "kaiming, limit all"),
        ({"lr": 0.001}, "kaiming, lr 0.001"),
        ({"freeze": "A", "rank": 16}, "kaiming + frozen A, rank 16"),
    ],
)
def test_the_unusual_is_told(unusual: dict[str, Any], label: str) -> None:
    assert sorted(labels(KAIMING, OSRM, {**KAIMING, **unusual})) == sorted(["kaiming", "osrm", label])


def test_layers_are_told_apart_where_they_are_told() -> None:
    both, more = ({"target_modules": ["query", *rest, "value"]} for rest in ([], ["key"]))
    found = labels({**KAIMING, **both}, {**OSRM, **both}, {**KAIMING, **more})
    assert sorted(found) == ["kaiming", "kaiming, query/key/value", "osrm"]


def test_a_start_that_does_not_tell_its_layers_joins_the_only_arm_that_is_otherwise_alike() -> None:
    both, more = ({"target_modules": ["query", *rest, "value"]} for rest in ([], ["key"]))
    old, new, wide = file("a", **KAIMING), file("b", seed=1, **KAIMING, **both), file("c", seed=1, **KAIMING, **more)
    (arm,) = group_arms([old, new]).arms
    assert arm.label == "kaiming"
    assert arm.values["target_modules"] == ("query", "value")
    table = group_arms([old, new, file("d", **OSRM)])  # the fourth does not tell either
    found, arm_of = table.arms, table.arm_of
    assert [arm.label for arm in found] == ["kaiming", "osrm"]
    assert arm_of["a"] == arm_of["b"]
    table = group_arms([old, new, wide])
    found, arm_of = table.arms, table.arm_of
    assert len(found) == 3  # the first may be either


def test_statistics_are_told_apart_within_an_objective() -> None:
    mean, second = {"statistic": "mean"}, {"statistic": "second-moment"}
    assert labels(KAIMING, {**OSRM, **mean}, {**GEVD, **second}) == ["kaiming", "osrm", "gevd"]
    found = labels(KAIMING, {**OSRM, **second}, {**OSRM, **mean}, {**GEVD, **second})
    assert found == ["kaiming", "osrm", "osrm (second-moment)", "gevd"]


def test_what_some_do_without_is_told_of_the_others() -> None:
    penalty = {"interference_penalty": 3.0, "penalty_unit": "base"}
    assert labels(KAIMING, {**KAIMING, **penalty}, {**GEVD, **penalty}, {**OSRM, **penalty}) == [
        "kaiming",
        "kaiming + penalty 3",
        "osrm + penalty 3",
        "gevd + penalty 3",
    ]


def test_units_of_a_penalty_are_told_apart() -> None:
    own, base = ({"interference_penalty": 3.0, "penalty_unit": unit} for unit in ("own", "base"))
    assert labels(GEVD, {**GEVD, **base}, {**GEVD, **own}) == [
        "gevd",
        "gevd + penalty 3",
        "gevd + penalty 3 of own energy",
    ]


def test_names_are_never_shared() -> None:
    files = []
    for place, limit in enumerate((100, 200, 300)):
        made = file(str(place))
        files.append(made)
        remake(made, "qqp", "train", limit=limit)
    found = group_arms(files).arms
    assert len({arm.label for arm in found}) == 3


def test_baselines_come_first_then_the_order_of_the_table() -> None:
    found = labels({"objective": "random-orthonormal"}, GEVD, OSRM, {"objective": "gaussian"}, KAIMING)
    assert found == ["kaiming", "gaussian", "osrm", "gevd", "random-orthonormal"]


def test_seeds_are_repetitions() -> None:
    files = [file("a", seed=0), file("b", seed=1), file("c", seed=2, objective="osrm")]
    table = group_arms(files)
    found, arm_of = table.arms, table.arm_of
    assert len(found) == 2
    assert arm_of == {"a": 0, "b": 0, "c": 1}
    assert [table.seed_of[each.name] for each in files] == ["0", "1", "2"]


def test_a_start_of_another_seed_is_another_repetition() -> None:
    made = file("a", seed=1)
    for task in made.adapters:
        remake(made, task, "start", seed=4)
    assert group_arms([made]).seed_of["a"] == "1/4"


def test_fewer_tasks_belong_to_the_arm_they_agree_with() -> None:
    files = [file("some", ("qqp",), rank=16), file("all"), file("all16", rank=16), file("other", ("sst2",))]
    table = group_arms(files)
    found, arm_of = table.arms, table.arm_of
    assert arm_of["some"] == arm_of["all16"]
    assert arm_of["other"] not in (arm_of["all"], arm_of["all16"])
    assert len(found) == 3


def test_mixed_adapters_are_told() -> None:
    made = file("a")
    remake(made, "qqp", "train", limit=500)
    remake(made, "qqp", "start", objective="osrm")
    (plain, arm) = group_arms([made, file("b", objective="gevd")]).arms
    assert [plain.label, arm.label] == ["gevd", "mixed starts, mixed limit"]
    assert str(arm.values["limit"]) == "2000 (cola), 500 (qqp)"
    assert str(arm.values["objective"]) == "kaiming (cola), osrm (qqp)"


def test_adapters_of_other_programs_are_told_apart_by_their_folders() -> None:
    def made(name: str) -> ScoreFile:
        about = {task: AdapterRecord(f"{name}/{task}") for task in ("cola", "qqp")}
        return ScoreFile(name, "", "dev", "float32", about, {}, ())

    (arm,) = group_arms([made("/home/me/plain")]).arms
    assert arm.label == "other start"
    assert group_arms([made("plain")]).seed_of["plain"] == ""
    table = group_arms([made("/home/me/plain"), made("/home/me/other")])
    found, arm_of = table.arms, table.arm_of
    assert found[arm_of["/home/me/other"]].label in ("other start", "other start, from other")
    assert len({arm.label for arm in found}) == 2


def test_a_repair_is_told() -> None:
    def made(name: str, **repair: Any) -> ScoreFile:
        found = file(name)
        for task in found.adapters:
            remake(found, task, "retrofit", max_length=128, seed=0, **repair)
        return found

    plain, first = file("a"), made("b", method="balanced", mu=1.0)
    assert [arm.label for arm in group_arms([plain, first]).arms] == ["kaiming", "kaiming + retrofit (balanced)"]
    other, start = made("c", method="balanced", mu=3.0), made("d", method="projection", objective="osrm", eps=1e-3)
    assert {arm.label for arm in group_arms([plain, first, other, start]).arms} == {
        "kaiming",
        "kaiming + retrofit (balanced)",
        "kaiming + retrofit (balanced), retrofit mu 3",
        "kaiming + retrofit (projection)",
    }


def test_the_baseline_is_found_by_name_then_by_objective() -> None:
    found = group_arms([file("a", objective="osrm"), file("b", rank=16), file("c"), file("d", objective="gevd")]).arms
    names = [arm.label for arm in found]
    assert names[find_baseline_arm(found, None) or 0] == "kaiming"
    assert names[find_baseline_arm(found, "kaiming, rank 16") or 0] == "kaiming, rank 16"
    assert names[find_baseline_arm(found, "osrm") or 0] == "osrm"
    with pytest.raises(OsrmError, match="no arm 'eva'") as error:
        find_baseline_arm(found, "eva")
    assert "kaiming; kaiming, rank 16; osrm; gevd" in (error.value.hint or "")
    assert find_baseline_arm([make_arm("osrm", {"cola": {"objective": "osrm"}})], None) is None


def test_adapters_that_do_not_tell_their_head_had_a_fresh_one() -> None:
    started = AdapterRecord("", start={"objective": "osrm"}, train={"lr": 1})
    told = AdapterRecord("", start={"objective": "osrm"}, train={"lr": 1, "head": "fresh"})
    assert read_arm_settings(started) == read_arm_settings(told) == {"objective": "osrm", "lr": 1, "head": "fresh"}


def named(arm: str | None, *args: Any, **settings: Any) -> ScoreFile:
    return replace(file(*args, **settings), arm=arm)


def test_named_arms_come_first_in_the_order_of_their_names() -> None:
    files = [named("ours", "a", objective="gevd"), named("plain", "b"), named(None, "c", objective="osrm")]
    table = group_arms(files, ["plain", "ours"])
    assert [arm.label for arm in table.arms] == ["plain", "ours", "osrm"]
    assert table.arm_of == {"a": 1, "b": 0, "c": 2}
    assert [arm.objective for arm in table.arms] == ["kaiming", "gevd", "osrm"]
    assert find_baseline_arm(table.arms, None) == 0


def test_a_name_keeps_apart_what_is_made_alike_and_together_what_is_not() -> None:
    files = [named("one", "a"), named("two", "b"), named("two", "c", seed=1, lr=0.5)]
    table = group_arms(files, ["one", "two"])
    assert table.arm_of == {"a": 0, "b": 1, "c": 1}
    assert [arm.conflicts for arm in table.arms] == [(), ("lr",)]
    assert table.mixtures == ("", "lr differs between its files")


def test_an_inferred_arm_does_not_take_a_given_name() -> None:
    table = group_arms([named("osrm", "a"), named(None, "b", objective="osrm")], ["osrm"])
    assert [arm.label for arm in table.arms] == ["osrm", "osrm (unnamed)"]
