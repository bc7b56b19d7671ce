import subprocess
import sys

import pytest

from osrm_cli.errors import OsrmError
from osrm_cli.features.statistics.accumulators import MeanAccumulator, SamplesAccumulator, SecondMomentAccumulator
from osrm_cli.features.statistics.frequent_directions import FrequentDirections
from osrm_cli.features.statistics.table import STATISTICS, find_statistic


def test_every_row_loads_its_accumulator():
    loaded = {
        "mean": MeanAccumulator,
        "samples": SamplesAccumulator,
        "second-moment": SecondMomentAccumulator,
        "sketch:5": FrequentDirections,
    }
    assert len(loaded) == len([row for row in STATISTICS if row.accumulator])
    for name, kind in loaded.items():
        accumulator = find_statistic(name).load()(7)
        assert type(accumulator) is kind
        assert accumulator.d_in == 7
    assert find_statistic("sketch:5").load()(7).size == 5


def test_names_are_read_leniently():
    assert find_statistic("second_moment").name == "second-moment"
    assert find_statistic("sketch:064").name == "sketch:64"
    assert find_statistic("sketch:64").kind == "sketch"


@pytest.mark.parametrize(
    "name",
    [
        *("sketch", "sketch:", "sketch:0", "sketch:-3", "sketch:x", "sketch:65537", "sketch:" + "9" * 5000),
        *("mean:3", "", "sktch:4"),
    ],
)
def test_a_bad_name_is_one_line(name):
    with pytest.raises(OsrmError) as raised:
        find_statistic(name)
    assert repr(name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_nearest_name_is_offered():
    with pytest.raises(OsrmError) as raised:
        find_statistic("sekond-moment")
    assert raised.value.hint == "did you mean 'second-moment'?"


@pytest.mark.parametrize("module", ["features.statistics.table", "initialization.objectives.table"])
def test_the_tables_do_not_import_torch(module):
    code = f"import sys, osrm_cli.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
