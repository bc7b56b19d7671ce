"""Regular expressions from files: those that people use pass, those that never end or cannot be read do not."""

import pytest

from osrm_cli.adapters.patterns import check_pattern, pattern_matches

COMMON = [
    "query",
    "",
    "$",
    ".*",
    r"model.layers.\d+.self_attn.q_proj",
    r".*layer\.[01].*(query|dense)",
    r"^(?!.*lm_head).*proj",
    r"layers\.(0|1|2)\..*",
    r"(?P<block>.*)\.query",
    "[]a]*",
    "(?:abc)?x",
    r"\(.*\)+",
    "a{x}b{}",
    r"(?:.*?(?:vision|language|text).*?(?:self_attn|mlp|ffn).*?(?:q_proj|k_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.q_proj)",
]
REFUSED = {
    "([a-z0-9.]+)+!": "repeats a group",
    "(a|a)*b": "repeats a group",
    "((a?){30}){9}": "repeats a group",
    "(a?){99}": "repeats a group",
    ".*.*.*.*.*.*!": "more than 5 repetitions",
    "x" * 20_000: "more than 10000 characters",
    "a{99999999999}": "is not a regular expression",
    "(" * 3000 + ")" * 3000: "is not a regular expression",
    "(?i)x": "is not a regular expression",
    "(?P<n>.*)(?P<n>.*)": "is not a regular expression",
    "(?<=a+)b": "is not a regular expression",
    "[": "is not a regular expression",
    "\\": "is not a regular expression",
    r"(.*)\1": "refers back",
    "a)|(b": "is not a regular expression",
}


@pytest.mark.parametrize("pattern", COMMON)
def test_what_people_use_passes(pattern):
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(("pattern", "message"), REFUSED.items(), ids=lambda text: text[:20])
def test_what_never_ends_or_cannot_be_read_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message) as error:
        check_pattern(pattern)
    assert len(str(error.value)) < 250


def test_flags_at_the_start_are_for_whole_names():
    assert check_pattern("(?i).*QUERY", is_whole=True)


@pytest.mark.parametrize(
    ("pattern", "layer", "expected"),
    [
        ("query", "layer.0.query", True),
        ("query", "layer.0.myquery", False),
        ("ery", "layer.0.query", False),
        ("a|query", "layer.0.query", True),
        ("layer", "layer.0.query", False),
        (r"^layer\.0\.query", "layer.0.query", True),
    ],
)
def test_an_expression_matches_the_end_of_a_name(pattern, layer, expected):
    assert pattern_matches(pattern, layer) is expected
