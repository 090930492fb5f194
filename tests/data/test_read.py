"""Reading: encodings, wrong names, containers, damage; counts that add up whatever the bytes."""

# ruff: noqa: RUF001  Chinese text
import csv
import gzip
import io
import json
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoop.core.errors import UserError
from dialoop.data.jsonstream import Damaged, Stream, elements
from dialoop.data.read import Record, Rejected, Skipped, read
from dialoop.data.tables import looks_like_table

ROWS = [{"instruction": f"问题 {n}：怎么退货？", "output": f"答案 {n}\n第二行"} for n in range(20)]


def values(path: Path, **options: Any) -> list[Any]:
    items = list(read(path, **options))
    assert all(isinstance(item, Record) for item in items), items
    return [item.value for item in items if isinstance(item, Record)]


def jsonl(rows: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def table(delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["instruction", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gbk", "gb18030"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_json_lines_by_content(tmp_path: Path, encoding: str, end: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(jsonl(ROWS, end).encode(encoding))
    assert values(path) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_tables_by_content(tmp_path: Path, encoding: str, delimiter: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(table(delimiter).encode(encoding))
    assert values(path) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
def test_one_array(tmp_path: Path, indent: int | None, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=indent), encoding="utf-8")
    assert values(path) == ROWS


def test_object_of_ids_and_wrapped_list(tmp_path: Path) -> None:
    keyed, wrapped = tmp_path / "k.json", tmp_path / "w.json"
    keyed.write_text(json.dumps({"a1": ROWS[0], "a2": ROWS[1]}), encoding="utf-8")
    wrapped.write_text(json.dumps({"version": 1} | {"data": ROWS}, indent=1), encoding="utf-8")
    assert values(keyed) == [{"id": "a1"} | ROWS[0], {"id": "a2"} | ROWS[1]]
    wrapped.write_text(json.dumps({"data": ROWS}, indent=1), encoding="utf-8")
    assert values(wrapped) == ROWS


def test_gzip_zip_zstd_folder_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    text = jsonl(ROWS).encode()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (folder / "b.json").write_bytes(zstandard.compress(text))
    with zipfile.ZipFile(folder / "c.zip", "w") as archive:
        archive.writestr("inner/x.jsonl", text)
        archive.writestr("__MACOSX/x.jsonl", b"junk")
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "d.parquet")
    (folder / "picture.jpg").write_bytes(b"\xff\xd8\xff\x00")
    (folder / "e.json").write_bytes(b"")
    items = list(read(folder))
    assert [i.value for i in items if isinstance(i, Record)] == ROWS * 4
    skipped = {Path(i.file).name: i.reason for i in items if isinstance(i, Skipped)}
    assert skipped == {
        "picture.jpg": "not a data file by its name",
        "e.json": "is empty",
        "x.jsonl": "made by macOS",
    }
    assert len(items) == 4 * len(ROWS) + 3


def test_text_by_line_and_whole(tmp_path: Path) -> None:
    path, page = tmp_path / "a.txt", tmp_path / "a.md"
    path.write_text("第一行\r\n\r\n第二行", encoding="utf-8")
    page.write_text("# Title\n\nbody", encoding="utf-8")
    assert values(path) == [{"text": "第一行"}, {"text": "第二行"}]
    assert values(page) == [{"text": "# Title\n\nbody"}]
    assert len(values(path, unit="document")) == 1


def test_a_damaged_line_costs_itself(tmp_path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    lines[3] = lines[3][:20]
    lines[5] = b"{'single': 1}"
    lines[7] = lines[7].replace("问".encode(), b"\xff\xfe")
    lines[9] = b'{"a": NaN}'
    lines[11] = b'{"a": "\\ud83d"}'
    lines[13] = b""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    items = list(read(path))
    bad = {i.origin.line: i.reason for i in items if isinstance(i, Rejected)}
    assert bad == {
        4: "not JSON", 6: "not JSON", 8: "bytes that are not utf-8", 10: "not JSON", 12: "not JSON",
    }  # fmt: skip
    assert len(items) == 19


def test_a_damaged_element_of_an_array_costs_itself(tmp_path: Path) -> None:
    parts = [json.dumps(row) for row in ROWS]
    parts[4] = parts[4].replace('"output"', "output")
    parts[9] = parts[9][:-3]
    path = tmp_path / "a.json"
    path.write_text("[\n" + ",\n".join(parts) + "\n]", encoding="utf-8")
    items = list(read(path))
    assert [i.origin.line for i in items if isinstance(i, Rejected)] == [5, 10]
    assert sum(isinstance(i, Record) for i in items) == 18


def test_a_quote_that_is_not_closed_costs_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('query,answer\na,"one\nb,two\nc,"three, 3"\n', encoding="utf-8")
    items = list(read(path))
    good = [i.value for i in items if isinstance(i, Record)]
    assert {"query": "c", "answer": "three, 3"} in good or len(items) == 3
    assert len(items) >= 2
    path.write_text("query,answer\na,1,2\nb,two\n", encoding="utf-8")
    first, second = read(path)
    assert isinstance(first, Rejected)
    assert first.reason == "wrong number of cells"
    assert isinstance(second, Record)


def test_bytes_tell_gbk_from_a_few_damaged_utf8_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ascii_head = jsonl([{"text": "a" * 1000}] * 600)
    path.write_bytes((ascii_head + jsonl(ROWS)).encode("gbk"))
    assert values(path)[600:] == ROWS


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"  \n ", "is empty"),
        (bytes(range(256)) * 20, "binary"),
        ("日本語のテキストです。かなばかりのぶんしょう\n".encode("shift-jis") * 9, "encoding"),
    ],
)
def test_what_holds_no_data_is_an_error_that_says_so(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        list(read(path))
    assert caught.value.hint


def test_missing_file_and_wrong_encoding_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        list(read(tmp_path / "none.json"))
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(ROWS).encode("gbk"))
    with pytest.raises(UserError, match="is not utf-8"):
        list(read(path, encoding="utf-8"))
    with pytest.raises(UserError, match="unknown encoding `klingon`"):
        list(read(path, encoding="klingon"))
    path.write_bytes(jsonl(ROWS).encode("big5", errors="ignore"))
    assert len(list(read(path, encoding="big5"))) == len(ROWS)
    with pytest.raises(UserError, match="is not utf-16"):
        list(read(path, encoding="utf-16"))


def test_a_long_array_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    row = json.dumps({"text": "x" * 2000})
    path.write_text("[" + ", ".join([row] * 10_000) + "]", encoding="utf-8")
    tracemalloc.start()
    count = sum(1 for _ in read(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 6 * 2**20, "20 MB are read through a window"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[n : n + size] for n in range(0, len(text), size))


@given(st.lists(json_values, max_size=6), st.integers(1, 7), st.sampled_from([None, 1]))
def test_any_array_in_any_pieces_is_itself(rows: list[Any], size: int, indent: int | None) -> None:
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    assert list(elements(Stream(pieces(text, size)))) == rows


@given(st.text(max_size=60), st.integers(1, 9))
def test_any_text_ends(text: str, size: int) -> None:
    found = list(elements(Stream(pieces("[" + text, size))))
    assert len(found) <= len(text) + 2
    assert all(f is None or isinstance(f, Damaged | str | int | float | list | dict) for f in found)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400), name=st.sampled_from(["a.json", "a.jsonl", "a.csv", "a.txt"]))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_bytes(data)
    try:
        for item in read(path):
            assert isinstance(item, Record | Rejected)
    except UserError as error:
        assert error.hint  # noqa: PT017


@pytest.mark.parametrize("head", ['"', '"query,response\n', 'query,"response'])
def test_a_first_line_with_an_open_quote_is_no_header(head: str) -> None:
    assert not looks_like_table(head)
