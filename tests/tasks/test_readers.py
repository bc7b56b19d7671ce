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
from osrm_cli.tasks.readers import FORMATS, find_split_files, read_table

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


def rows_of(table):
    return [dict(zip(table.columns, values, strict=True)) for values in zip(*table.columns.values(), strict=True)]


def read_rows(path, limit=None):
    return rows_of(read_table(path, limit))


def refused(path, limit=None):
    with pytest.raises(OsrmError) as error:
        read_table(path, limit)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_rows(tmp_path, kind, gz):
    path = write(tmp_path, f"train.{kind}{gz}", encoded(kind, ROWS))
    found = read_rows(path)
    assert found == (TEXT_ROWS if kind in ("csv", "tsv") else ROWS)
    assert found[:2] == read_rows(path, limit=2)
    assert list(tmp_path.iterdir()) == [path], "reading leaves nothing behind"


@pytest.mark.parametrize(
    ("kind", "places"),
    [("jsonl", [":1", ":2", ":3"]), ("csv", [":2", ":3", ":4"]), ("json", [", row 1", ", row 2", ", row 3"])],
)
def test_a_row_knows_its_place(tmp_path, kind, places):
    path = write(tmp_path, f"train.{kind}", encoded(kind, ROWS))
    table = read_table(path)
    assert [table.locate(row) for row in range(len(table))] == [f"{path}{place}" for place in places]
    assert table.take([2, 0]).locate(0) == f"{path}{places[2]}"


def test_a_parquet_row_knows_its_number_across_batches(tmp_path):
    rows = [{"sentence": str(i), "label": i} for i in range(5000)]
    path = write(tmp_path, "train.parquet", encoded("parquet", rows))
    table = read_table(path)
    assert table.locate(4999) == f"{path}, row 5000"
    assert rows_of(table) == rows
    assert read_rows(path, 4100) == rows[:4100]


def test_lines_count_past_blank_lines_and_line_breaks_in_a_field(tmp_path):
    path = write(tmp_path, "a.csv", 'sentence,label\r\n"one\r\ntwo",1\r\n\r\nthree,0\r\n')
    table = read_table(path)
    assert rows_of(table) == [{"sentence": "one\r\ntwo", "label": "1"}, {"sentence": "three", "label": "0"}]
    assert list(table.numbers) == [2, 5]
    assert list(read_table(write(tmp_path, "a.jsonl", '{"a": 1}\n\n \n{"a": 2}')).numbers) == [1, 4]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert read_rows(write(tmp_path, "a.csv", b"\xef\xbb\xbfsentence,label\nx,1\n"))[0] == {
        "sentence": "x",
        "label": "1",
    }
    assert read_rows(write(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"label": 1}\n'))[0] == {"label": 1}


def test_quotation_marks_in_tsv_are_text(tmp_path):
    path = write(tmp_path, "a.tsv", 'sentence\tlabel\n"He said\t1\n" and left\t0\n')
    assert [row["sentence"] for row in read_rows(path)] == ['"He said', '" and left']


def test_json_may_hold_lines_or_an_empty_array(tmp_path):
    assert read_rows(write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]
    assert refused(write(tmp_path, "b.json", " [ ] ")).endswith("b.json holds no rows")


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\nnonsense\n')
    assert read_rows(path, limit=1) == [{"a": 1}]
    assert ":2: bad JSON" in refused(path, limit=2)


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2", "bad JSON"),
        ("a.jsonl", "{}\n" + "[" * 100_000, ":2", "bad JSON"),
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', ":2", "found list, expected a JSON object"),
        ("a.jsonl", '{"a": 1}\n{"a": "ü"}\n'.encode() + b'{"a": "\xff"}\n', ":3", "not UTF-8"),
        ("a.jsonl.gz", b'{"a": 1}\n\x81\n', ":2", "not UTF-8"),
        ("a.json", '[{"a": 1},\n\n {"a": ]', ":3", "bad JSON"),
        ("a.json", '[{"a": 1},\n {"a": 2}\n', ":3", "bad JSON"),
        ("a.json", '[{"a": 1}\n {"a": 2}]\n', ":2", "bad JSON"),
        ("a.json", '[{"a": 1}]\n\n]', ":3", "bad JSON"),
        ("a.json", '[{"a": 1},\n]', ":2", "bad JSON"),
        ("a.json", "[" * 100_000, ":1", "bad JSON"),
        ("a.json", '[{"a": 1},\n\n3]', ", row 2", "found int, expected a JSON object"),
        ("a.json", '[["a", "b"]]', "", "pairs, of which it cannot be told where the label stands"),
        ("a.json", '{"train": [{"a": 1}], "dev": [{"a": 1}]}', "", "holds an object of train, dev, expected an array"),
        ("a.json", "3", "", "holds int, expected an array"),
        ("a.csv", "sentence,label\na,1\nb, c,1\n", ":3", "3 columns, expected 2: sentence, label"),
        ("a.csv", 'sentence,label\n"one\ntwo",1\nb\n', ":4", "1 columns, expected 2"),
        ("a.csv", 'sentence,label\na,1\n"b,1\nc,1\n', ":3", "bad row"),
        ("a.csv", "a,b,a\n1,2,3\n", ":1", "two columns have one name"),
        ("a.csv", ",\n1,2\n", ":1", "no column has a name"),
        ("a.csv", "sentence,label\nü,1\n".encode() + b"b\xe9,1\n", ":3", "not UTF-8"),
        ("a.csv", b"\xff\xfea\x00,\x00b", ":", "damaged UTF-16"),
        ("a.tsv", "sentence\tlabel\na\n", ":2", "1 columns, expected 2"),
        ("a.jsonl", "", "", "holds no rows"),
        ("a.jsonl", "\n\n", "", "holds no rows"),
        ("a.json", "", "", "holds no rows"),
        ("a.csv", "", "", "holds no rows"),
        ("a.csv.gz", "sentence,label\n", "", "holds no rows"),
        ("a.parquet", "", "", "damaged or not a parquet file"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "", "damaged or not a parquet file"),
        ("a.parquet.gz", "PAR1", "", "damaged or not a parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, place, said):
    path = write(tmp_path, name, content)
    message = refused(path)
    assert message.startswith(f"{path}{place}{':' if place.strip(':') else ''} ")
    assert said in message


def test_a_damaged_gzip_file(tmp_path):
    whole = gzip.compress(b"".join(b'{"a": %d}\n' % i for i in range(20_000)))
    (path := tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "damaged gzip file" in refused(path)
    assert len(read_rows(path, limit=10)) == 10
    path.write_bytes(b'{"a": 1}\n')
    assert refused(path).startswith(f"{path}: damaged gzip file")
    path.write_bytes(whole[:100] + bytes(100) + whole[200:])
    assert "damaged gzip file" in refused(path)
    path.write_bytes(gzip.compress(b'{"a": "caf\xe9"}\n' + b'{"a": 1}\n' * 20_000)[:-20])  # not UTF-8 either
    assert "damaged gzip file" in refused(path)
    (path := tmp_path / "a.parquet.gz").write_bytes(gzip.compress(encoded("parquet", ROWS))[:-20])
    assert "damaged or not a parquet file" in refused(path)


def test_a_truncated_parquet_file(tmp_path):
    whole = encoded("parquet", ROWS)
    (path := tmp_path / "a.parquet").write_bytes(whole[:-8])
    assert "damaged or not a parquet file" in refused(path)


def test_split_files_are_found_by_name(tmp_path):
    assert find_split_files(tmp_path) == {}
    (tmp_path / "dev.csv").mkdir()
    assert find_split_files(tmp_path) == {}
    first = write(tmp_path, "validation.tsv.gz", "")
    train = write(tmp_path, "train-00000-of-00001.parquet", "")
    write(tmp_path, "notes.csv", "")
    assert find_split_files(tmp_path) == {"train": train, "dev": first}
    second = write(tmp_path, "dev.jsonl", "")
    with pytest.raises(OsrmError, match="hold the same split") as error:
        find_split_files(tmp_path)
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


@pytest.mark.parametrize("stem", ["dev", "validation", "valid", "val"])
def test_names_of_the_dev_split(tmp_path, stem):
    path = write(tmp_path, f"{stem}.csv", "")
    assert find_split_files(tmp_path) == {"dev": path}


def test_a_lone_file_is_train_unless_it_may_be_anything(tmp_path):
    write(tmp_path, "adapter_config.json", "")
    assert find_split_files(tmp_path) == {}
    path = write(tmp_path, "reviews.csv", "")
    write(tmp_path, "README.md", "")
    assert find_split_files(tmp_path) == {}, "two files that could be meant"
    (tmp_path / "adapter_config.json").unlink()
    assert find_split_files(tmp_path) == {"train": path}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FREE = st.lists(st.fixed_dictionaries({"first": TEXT, "second": TEXT}), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(rows=FREE, kind=st.sampled_from(["jsonl", "json", "parquet", "csv"]), gz=st.sampled_from(["", ".gz"]))
def test_any_text_survives(tmp_path_factory, rows, kind, gz):
    path = write(tmp_path_factory.mktemp("free"), f"train.{kind}{gz}", encoded(kind, rows))
    assert read_rows(path) == rows


PEOPLE = [
    {"text": "one, two; three", "label": "1"},
    {"text": "don\u2019t \u201cstop\u201d", "label": "0"},
    {"text": "a | b", "label": "1"},
]


def separated(delimiter, line_end="\n", rows=PEOPLE, quoting=csv.QUOTE_MINIMAL):
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0], delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_files_of_any_program(tmp_path, delimiter, line_end, encoding):
    content = ("\ufeff" if encoding[-2:] in ("le", "be") else "") + separated(delimiter, line_end)
    table = read_table(write(tmp_path, "a.csv", content.encode(encoding)))
    assert rows_of(table) == PEOPLE
    assert not table.warnings


def test_windows_text_is_read_with_a_warning(tmp_path):
    path = write(tmp_path, "a.csv", separated(",").encode("cp1252"))
    table = read_table(path)
    assert rows_of(table) == PEOPLE
    (warning,) = table.warnings
    assert warning.startswith(f"{path} is not UTF-8: read as cp1252")


def test_quotes_may_be_escaped_by_a_backslash(tmp_path):
    content = 'text,label\n"She said \\"fine\\", and left",0\n"ok, good",1\n"he said \\"",0\n'
    found = read_rows(write(tmp_path, "a.csv", content))
    assert [row["text"] for row in found] == ['She said "fine", and left', "ok, good", 'he said "']
    assert [row["label"] for row in found] == ["0", "1", "0"]
    assert read_rows(write(tmp_path, "b.csv", "text,label\na\\b,0\n")) == [{"text": "a\\b", "label": "0"}]
    broken = write(tmp_path, "c.csv", 'text,label\n"a \\" b,0\n"c" d,1\n')
    assert refused(broken).startswith(f"{broken}:2: bad row")


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tsv_that_is_quoted(tmp_path, quoting):
    rows = [{"text": 'He said "no", ok\tthen\nleft', "label": "1"}, {"text": '"quoted" too', "label": "0"}]
    assert read_rows(write(tmp_path, "a.tsv", separated("\t", rows=rows, quoting=quoting))) == rows
    plain = [{"text": '"Hello"', "label": "1"}, {"text": '"Bye" she said', "label": "0"}]
    content = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in plain)
    assert read_rows(write(tmp_path, "b.tsv", content)) == plain


def test_a_field_of_any_length(tmp_path):
    rows = [{"text": "word " * 40_000, "label": "1"}]
    for delimiter, name in ((",", "a.csv"), ("\t", "a.tsv")):
        assert read_rows(write(tmp_path, name, separated(delimiter, rows=rows))) == rows


def test_columns_without_a_name_are_left_out(tmp_path):
    path = write(tmp_path, "a.csv", "v1,v2,,,\r\nham,hello,,,\r\nspam,win,now,,\r\nham,bye\r\n")
    table = read_table(path)
    assert [row["v2"] for row in rows_of(table)] == ["hello", "win", "bye"]
    assert table.warnings == [f"{path}: left out columns without a name, in which 1 rows hold something"]
    index = read_table(write(tmp_path, "b.csv", ",text,label\n0,a,1\n1,b,0, \n"))
    assert rows_of(index) == [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]
    assert not index.warnings


@pytest.mark.parametrize(
    "content",
    [
        {"data": ROWS},
        {"version": "1.0", "rows": ROWS},
        {key: [row[key] for row in ROWS] for key in ROWS[0]},
        {key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]},
    ],
    ids=["one key", "beside a version", "a list a column", "pandas"],
)
def test_json_in_the_usual_shapes(tmp_path, content):
    path = write(tmp_path, "a.json", json.dumps(content))
    assert read_rows(path) == ROWS
    assert read_rows(path, 2) == ROWS[:2]


@pytest.mark.parametrize("order", [1, -1])
def test_json_pairs(tmp_path, order):
    pairs = [["a", "x"], ["b", "y"], ["c", "x"]]
    found = read_rows(write(tmp_path, "a.json", json.dumps([pair[::order] for pair in pairs])))
    assert [(row["text"], row["label"]) for row in found] == [tuple(pair) for pair in pairs]


def test_rows_may_lack_columns(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"a": 1}\n{}\n{"b": 2}\n{"a": 3}\n')
    assert read_table(path).columns == {"a": [1, None, None, 3], "b": [None, None, 2, None]}
