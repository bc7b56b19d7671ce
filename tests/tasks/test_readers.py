import csv
import gzip
import io
import json

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from osrm_cli.errors import OsrmError
from osrm_cli.tasks.readers import FORMATS, SourceRow, find_split_file, read_rows

ROWS = [
    {"sentence": 'a "quoted" word, and a comma', "label": 1},
    {"sentence": "Grüße, 世界 🙂", "label": 0},
    {"sentence": "", "label": 1},
]
TEXT_ROWS = [{key: str(value) for key, value in row.items()} for row in ROWS]


def encoded(kind, rows):
    """Rows as another program would write them."""
    if kind == "parquet":
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1).encode()
    buffer = io.StringIO(newline="")
    if kind == "csv":
        writer = csv.DictWriter(buffer, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    else:
        buffer.write("".join("\t".join(map(str, row)) + "\n" for row in [rows[0].keys(), *(r.values() for r in rows)]))
    return buffer.getvalue().encode()


def write(folder, name, content):
    path = folder / name
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def refused(path, limit=None):
    with pytest.raises(OsrmError) as error:
        read_rows(path, limit)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_rows(tmp_path, kind, gz):
    path = write(tmp_path, f"train.{kind}{gz}", encoded(kind, ROWS))
    found = read_rows(path)
    assert [row.values for row in found] == (TEXT_ROWS if kind in ("csv", "tsv") else ROWS)
    assert found[:2] == read_rows(path, limit=2)
    assert list(tmp_path.iterdir()) == [path], "reading leaves nothing behind"


@pytest.mark.parametrize(
    ("kind", "lines"), [("jsonl", [1, 2, 3]), ("csv", [2, 3, 4]), ("tsv", [2, 3, 4]), ("json", [2, 6, 10])]
)
def test_a_row_knows_its_line(tmp_path, kind, lines):
    assert [row.line for row in read_rows(write(tmp_path, f"train.{kind}", encoded(kind, ROWS)))] == lines


def test_a_parquet_row_knows_its_number_across_batches(tmp_path):
    rows = [{"sentence": str(i), "label": i} for i in range(5000)]
    found = read_rows(write(tmp_path, "train.parquet", encoded("parquet", rows)))
    assert [row.line for row in found] == list(range(1, 5001))
    assert [row.values for row in found] == rows


def test_lines_count_past_blank_lines_and_line_breaks_in_a_field(tmp_path):
    path = write(tmp_path, "a.csv", 'sentence,label\r\n"one\r\ntwo",1\r\n\r\nthree,0\r\n')
    assert read_rows(path) == [
        SourceRow(2, {"sentence": "one\r\ntwo", "label": "1"}),
        SourceRow(5, {"sentence": "three", "label": "0"}),
    ]
    assert [row.line for row in read_rows(write(tmp_path, "a.jsonl", '{"a": 1}\n\n \n{"a": 2}'))] == [1, 4]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", b"\xef\xbb\xbfsentence,label\nx,1\n"))[0].values == {
        "sentence": "x",
        "label": "1",
    }
    assert read_rows(write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"label": 1}\n'))[0].values == {"label": 1}


def test_quotation_marks_in_tsv_are_text(tmp_path):
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"He said\t1\n" and left\t0\n')
    assert [row.values["sentence"] for row in read_rows(path)] == ['"He said', '" and left']


def test_json_may_hold_lines_or_an_empty_array(tmp_path):
    assert [row.line for row in read_rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n'))] == [1, 2]
    assert refused(write(tmp_path, "b.json", " [ ] ")).endswith("b.json holds no rows")


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\nnonsense\n')
    assert read_rows(path, limit=1) == [SourceRow(1, {"a": 1})]
    assert ":2: bad JSON" in refused(path, limit=2)


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2", "bad JSON"),
        ("a.jsonl", "{}\n" + "[" * 100_000, ":2", "bad JSON"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', ":2", "found list, expected a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "\xff"}\n', ":3", "not UTF-8"),
        ("a.jsonl.gz", b'{"a": 1}\n\xff\n', ":2", "not UTF-8"),
        ("a.json", '[{"a": 1},\n\n {"a": ]', ":3", "bad JSON"),
        ("a.json", '[{"a": 1},\n {"a": 2}\n', ":3", "bad JSON"),
        ("a.json", '[{"a": 1}\n {"a": 2}]\n', ":2", "bad JSON"),
        ("a.json", '[{"a": 1}]\n\n]', ":3", "bad JSON"),
        ("a.json", '[{"a": 1},\n]', ":2", "bad JSON"),
        ("a.json", "[" * 100_000, ":1", "bad JSON"),
        ("a.json", '[{"a": 1},\n\n3]', ":3", "found int, expected a JSON object"),
        ("a.csv", "sentence,label\na,1\nb, c,1\n", ":3", "3 columns, expected 2: sentence, label"),
        ("a.csv", 'sentence,label\n"one\ntwo",1\nb\n', ":4", "1 columns, expected 2"),
        ("a.csv", 'sentence,label\na,1\n"b,1\nc,1\n', ":3", "bad row"),
        ("a.csv", "a,b,a\n1,2,3\n", ":1", "two columns have one name"),
        ("a.csv", b"sentence,label\na,1\nb\xe9,1\n", ":3", "not UTF-8"),
        ("a.csv", "sentence,label\na,1\n" + "b" * 200_000 + ",1\n", ":3", "field larger than field limit"),
        ("a.tsv", "sentence\tlabel\na\n", ":2", "1 columns, expected 2"),
        ("a.jsonl", "", "", "holds no rows"),
        ("a.jsonl", "\n\n", "", "holds no rows"),
        ("a.json", "", "", "holds no rows"),
        ("a.csv", "", "", "holds no rows"),
        ("a.csv.gz", "sentence,label\n", "", "holds no rows"),
        ("a.parquet", "", "", "damaged or no parquet file"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "", "damaged or no parquet file"),
        ("a.parquet.gz", "PAR1", "", "damaged or no parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, place, said):
    path = write(tmp_path, name, content)
    message = refused(path)
    assert message.startswith(f"{path}{place}{':' if place else ''} ")
    assert said in message


def test_a_damaged_gzip_file(tmp_path):
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % i for i in range(20_000)))
    (path := tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "damaged gzip file" in refused(path)
    assert len(read_rows(path, limit=10)) == 10
    path.write_bytes(b'{"a": 1}\n')
    assert refused(path).startswith(f"{path}:1: damaged gzip file")
    path.write_bytes(whole[:100] + bytes(100) + whole[200:])
    assert "damaged gzip file" in refused(path)
    (path := tmp_path / "a.parquet.gz").write_bytes(gzip.compress(encoded("parquet", ROWS))[:-20])
    assert "damaged or no parquet file" in refused(path)


def test_a_truncated_parquet_file(tmp_path):
    whole = encoded("parquet", ROWS)
    (path := tmp_path / "a.parquet").write_bytes(whole[:-8])
    assert "damaged or no parquet file" in refused(path)


def test_find(tmp_path):
    assert find_split_file(tmp_path, "dev") is None
    (tmp_path / "dev.csv").mkdir()
    assert find_split_file(tmp_path, "dev") is None
    first = write(tmp_path, "validation.tsv.gz", "")
    assert find_split_file(tmp_path, "dev") == first
    second = write(tmp_path, "dev.jsonl", "")
    with pytest.raises(OsrmError, match="hold the same split") as error:
        find_split_file(tmp_path, "dev")
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FREE = st.lists(st.fixed_dictionaries({"first": TEXT, "second": TEXT}), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(rows=FREE, kind=st.sampled_from(["jsonl", "json", "parquet", "csv"]), gz=st.sampled_from(["", ".gz"]))
def test_any_text_survives(tmp_path_factory, rows, kind, gz):
    path = write(tmp_path_factory.mktemp("free"), f"train.{kind}{gz}", encoded(kind, rows))
    assert [row.values for row in read_rows(path)] == rows
