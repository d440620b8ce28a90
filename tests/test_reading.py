"""Files of every form, whole and broken, through the same reader."""

import bz2
import gzip
import io
import json
import logging
import lzma
import random
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.blocks import PACKED_BYTES, as_json_lines, read_blocks
from dataset.formats import RecordError
from dataset.preparation import PreparationSettings, write_store
from dataset.records import read_records, texts_of
from dataset.sources import check_sources, describe_source, find_sources
from dataset.text_files import TextRules
from dataset.tokenizer import train_tokenizer
from model.errors import UserError

ROWS = [{"text": f"{n} 法国 <|im_end|>", "n": n} for n in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def values(source):
    return [record.value for record in read_records([source])]


def faults(source):
    return [(record.line, record.fault) for record in read_records([source]) if record.value is None]


def zstd(content):
    return zstandard.ZstdCompressor().compress(content)


def parquet(path, rows=ROWS):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES[:-1]),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:])),
        ("a.jsonl.zst", zstd(LINES)),
        ("a.jsonl.zst", zstd(LINES[:1000]) + zstd(LINES[1000:])),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.bz2", bz2.compress(LINES[:1000]) + bz2.compress(LINES[1000:])),
        ("a.jsonl.xz", lzma.compress(LINES[:1000]) + lzma.compress(LINES[1000:])),
        ("a.json.xz", lzma.compress(json.dumps(ROWS).encode())),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps(ROWS, indent=0).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("a.json", LINES),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 1000, 2**22])
def test_every_form_gives_the_same_records(tmp_path, monkeypatch, name, content, block_bytes):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", block_bytes)
    assert values(write(tmp_path / name, content)) == ROWS


def test_parquet_and_the_hub_give_the_same_records_through_datasets(tmp_path):
    assert values(parquet(tmp_path / "a.parquet")) == ROWS
    (tmp_path / "stand_in").mkdir()
    parquet(tmp_path / "stand_in" / "train.parquet")
    write(tmp_path / "stand_in" / "README.md", b"a data set")
    assert values(f"hub:{tmp_path / 'stand_in'}") == ROWS


def test_values_of_the_hub_are_those_that_its_files_of_json_hold(tmp_path):
    rows = [{"day": "1969-07-10", "n": 2**70}, {"day": "1969-07-11", "calls": [{"a": None}, {"b": 0.1}]}]
    lines = "\n".join(map(json.dumps, rows)).encode()
    forms = {"a.json": json.dumps(rows).encode(), "b.jsonl": lines, "c.jsonl.gz": gzip.compress(lines)}
    for name, content in (forms | {"d.jsonl.zst": zstd(lines)}).items():
        write(tmp_path / "data" / name, content)
    assert values(f"hub:{tmp_path}") == rows * 4
    assert values(f"hub:{tmp_path}:default:train") == rows * 4
    with pytest.raises(UserError, match=f"^hub:{tmp_path} cannot be read: .*other"):
        values(f"hub:{tmp_path}:other")
    write(tmp_path / "data" / "c.jsonl.gz", gzip.compress(lines)[:-9])
    with pytest.raises(UserError, match="compressed data ends early"):
        values(f"hub:{tmp_path}")


MIXED = [{"text": 'It is "x".\nFine.'}, {"text": 42}, {"text": [{"type": "text", "text": "a"}, {"n": None}]}]


@pytest.mark.parametrize("name", ["a.json.gz", "a.ndjson", "a.jsonl.xz", "a.json.bz2", "a.json.zst"])
def test_texts_of_the_hub_among_other_values_stay_as_they_are(tmp_path, name):
    pack = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress, "zst": zstd}.get(
        name.split(".")[-1]
    )
    lines = "\n".join(map(json.dumps, MIXED)).encode()
    write(tmp_path / name, pack(lines) if pack else lines)
    assert values(f"hub:{tmp_path}") == MIXED


def test_texts_among_other_values_are_refused_where_datasets_has_to_read_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("a.jsonl", "\n".join(map(json.dumps, MIXED)))
    with pytest.raises(UserError, match="cannot be read: .*changed from string to number"):
        values(f"hub:{tmp_path}")


@pytest.mark.parametrize("on_hub", [False, True])
def test_json_in_a_table_is_what_it_says(tmp_path, on_hub):
    said = pyarrow.array([json.dumps(row["text"]) for row in MIXED])
    typed = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), said)
    listed = pyarrow.ListArray.from_arrays([0, 1, 2, 3], typed)
    parts = pyarrow.StructArray.from_arrays([typed, pyarrow.nulls(3, pyarrow.string())], ["said", "none"])
    table = pyarrow.table({"text": typed, "all": listed, "part": parts})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    rows = [row | {"all": [row["text"]], "part": {"said": row["text"]}} for row in MIXED]
    assert values(f"hub:{tmp_path}" if on_hub else str(tmp_path / "train.parquet")) == rows


def test_nothing_in_a_map_of_a_table_stays(tmp_path):
    texts = pyarrow.map_(pyarrow.string(), pyarrow.string())
    calls = pyarrow.array([[("city", "Lima"), ("unit", None)]], texts)
    pyarrow.parquet.write_table(pyarrow.table({"calls": calls}), tmp_path / "a.parquet")
    assert values(str(tmp_path / "a.parquet")) == [{"calls": {"city": "Lima", "unit": None}}]


def test_json_of_the_hub_that_is_too_large_to_hold_is_still_read(tmp_path, monkeypatch):
    write(tmp_path / "train.json", json.dumps(ROWS).encode())
    for module in ("tables", "blocks"):
        monkeypatch.setattr(f"dataset.{module}.MOST_JSON_BYTES", 10)
    assert values(f"hub:{tmp_path}") == ROWS


def test_a_text_in_csv_of_the_hub_is_never_taken_for_nothing(tmp_path):
    rows = "".join(f"{text},{n}\n" for n, text in enumerate(("N/A", "None", "null", "", "x")))
    write(tmp_path / "train.csv", f"text,n\n{rows}".encode())
    texts = ["N/A", "None", "null", None, "x"]
    assert values(f"hub:{tmp_path}") == [{"text": text, "n": n} for n, text in enumerate(texts)]


def test_what_is_not_read_of_the_hub_is_named(tmp_path, capsys):
    for name in ("train.csv", "more/\x1b.jsonl", "b.csv"):
        write(tmp_path / name, b"text\none\ntwo\n")
    card = "---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  {}\n---\n"
    write(tmp_path / "README.md", card.format("nrows: 1").encode())
    check_sources([f"hub:{tmp_path}"])
    assert values(f"hub:{tmp_path}") == [{"text": "one"}]
    files, rows = capsys.readouterr().err.splitlines()
    assert files == f"note: hub:{tmp_path}: not read are the files: b.csv, more/\\x1b.jsonl"
    assert rows == f"note: hub:{tmp_path}: its card says what is read of a file, and how: {{'nrows': 1}}"
    parquet(tmp_path / "train.parquet", ROWS[:3])
    filtered = card.format("filters: [[n, '>', 0]]").replace("train.csv", "train.parquet")
    write(tmp_path / "README.md", filtered.encode())
    check_sources([f"hub:{tmp_path}"])
    assert values(f"hub:{tmp_path}") == ROWS[1:3]
    assert "what is read of a file, and how: {'filters': [['n', '>', 0]]}" in capsys.readouterr().err
    write(tmp_path / "broken.parquet", (tmp_path / "train.parquet").read_bytes()[:-9])
    skipping = filtered.replace("train.parquet", "'*.parquet'").replace(
        "filters: [[n, '>', 0]]", "on_bad_files: skip"
    )
    write(tmp_path / "README.md", skipping.encode())
    with pytest.raises(UserError, match="cannot be read"):
        values(f"hub:{tmp_path}")
    write(tmp_path / "train.csv", b"text\none\ntwo,three\n")
    write(tmp_path / "README.md", card.format("on_bad_lines: skip").encode())
    with pytest.raises(UserError, match="cannot be read: .*Expected 1 fields in line 3, saw 2"):
        values(f"hub:{tmp_path}")


def test_what_is_not_read_of_archives_and_behind_links_is_named_too(tmp_path, capsys):
    folder = tmp_path / "of.txt"  # whose name says nothing of how it is read
    write(folder / "more.jsonl", LINES)
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for name in ("a.csv", "__b.csv", ".c/d.csv"):
            archive.writestr(name, "text\none\n\n\ntwo\n")
    (tmp_path / "link").symlink_to(folder)
    for name in ("of.txt", "link"):
        check_sources([f"hub:{tmp_path / name}"])
        assert values(f"hub:{tmp_path / name}") == [{"text": "one"}, {"text": "two"}]
        files, members = capsys.readouterr().err.splitlines()
        assert files == f"note: hub:{tmp_path / name}: not read are the files: more.jsonl"
        assert members.startswith(
            f"note: hub:{tmp_path / name}: of archives are not read names and folders that"
        )
        assert members.endswith(": train.zip")


def test_what_datasets_would_lose_a_part_of_in_silence_is_refused(tmp_path):
    write(tmp_path / "cut" / "train.csv.zst", zstd(b"text\n" + b"one\n" * 9)[:-3])
    with pytest.raises(UserError, match="whether .*train.csv.zst is whole would not be seen; unpack it"):
        values(f"hub:{tmp_path / 'cut'}")
    (tmp_path / "samples").mkdir()
    with tarfile.open(tmp_path / "samples" / "train.tar", "w") as archive:
        for name in ("1.txt", "2.txt"):
            archive.add(write(tmp_path / name, b"one"), name)
    with pytest.raises(
        UserError, match="would be read as webdataset; expected json, csv, text, parquet, arrow"
    ):
        values(f"hub:{tmp_path / 'samples'}")
    write(tmp_path / "ours" / "train.jsonl.zst", zstd(LINES))
    assert values(f"hub:{tmp_path / 'ours'}") == ROWS


def test_a_data_set_of_the_hub_that_has_changed_is_another_source(tmp_path):
    write(tmp_path / "train.jsonl", LINES)
    first, same, split = (describe_source(f"hub:{tmp_path}{of}")["sha256"] for of in ("", "", ":train"))
    write(tmp_path / "train.jsonl", LINES[::-1])
    assert first == same != split and describe_source(f"hub:{tmp_path}")["sha256"] != first


def test_a_split_and_a_configuration_of_the_hub_can_be_named(tmp_path, capsys):
    for split, rows in {"train": ROWS[:5], "test": ROWS[5:8], "validation": ROWS[8:9]}.items():
        parquet(tmp_path / f"{split}.parquet", rows)
    assert values(f"hub:{tmp_path}") == ROWS[:5]
    check_sources([f"hub:{tmp_path}"])  # as what lies there already does
    said = capsys.readouterr().err.splitlines()
    assert said == [f"note: hub:{tmp_path}: train is read; not read are the splits validation, test"]
    assert values(f"hub:{tmp_path}:test") == ROWS[5:8]
    assert values(f"hub:{tmp_path}:default:test") == ROWS[5:8]
    with pytest.raises(UserError, match="expected hub:org/name"):
        values("hub:a:b:c:d")
    with pytest.raises(UserError, match=f"^hub:{tmp_path} cannot be read: .*other"):
        values(f"hub:{tmp_path}:other")
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(UserError, match="it has no split train; name one of validation, test"):
        values(f"hub:{tmp_path}")
    (tmp_path / "validation.parquet").unlink()
    assert values(f"hub:{tmp_path}") == ROWS[5:8]
    assert not capsys.readouterr().err


def test_folders_and_globs_stand_for_their_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.txt", "deep/c.jsonl.gz", "notes.md"):
        write(tmp_path / name, b"x")
    names = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "deep/c.jsonl.gz")]
    assert find_sources([str(tmp_path)]) == names
    assert find_sources([str(tmp_path / "*.jsonl"), "hub:a/b"]) == [names[1], "hub:a/b"]
    assert find_sources([str(tmp_path / "**" / "*.gz")]) == [names[2]]
    for nothing in (str(tmp_path / "*.json"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="no data files in"):
            find_sources([nothing])


def test_what_a_data_set_of_the_hub_has_at_first_is_not_read_twice_though_only_one_name_tells_so(monkeypatch):
    monkeypatch.setattr("dataset.sources.tell_unread", lambda source: None)  # which would ask the hub
    check_sources(["hub:a/b", "hub:a/b:test", "hub:a/b:other:train", "hub:a/c"])
    for twice in ("hub:a/b", "hub:a/b:train", "hub:a/b:default:train"):
        with pytest.raises(UserError, match=f"more than once: hub:a/b and {twice};"):
            check_sources(["hub:a/b", "hub:a/b:test", twice])


def test_a_file_under_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "a.jsonl", LINES)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "data" / "a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "data" / "a.jsonl")
    for names in (["data", "./data/a.jsonl"], ["link.jsonl", str(tmp_path / "data")], ["hard.jsonl", "data"]):
        with pytest.raises(UserError, match="more than once: .*a.jsonl"):
            check_sources(find_sources(names))


def test_no_name_is_not_the_current_folder():
    with pytest.raises(UserError, match="expected the name of a file, .* got ''"):
        find_sources([""])


def test_a_linked_folder_that_is_not_read_is_named(tmp_path, capsys):
    data = write(tmp_path / "data" / "a.jsonl", LINES)
    write(tmp_path / "elsewhere" / "b.jsonl", LINES)
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert find_sources([str(tmp_path / "data")]) == [data]
    assert (
        capsys.readouterr().err == f"note: {tmp_path}/data/more is a link to a folder: name it to read it\n"
    )


def test_what_is_hidden_in_a_folder_is_not_read_and_named(tmp_path, capsys):
    data = write(tmp_path / "a.jsonl", LINES)
    for name in (".b.jsonl", ".cache/c.jsonl", ".jsonl", ".DS_Store", ".git/e.jsonl"):
        write(tmp_path / name, LINES)
    assert find_sources([str(tmp_path)]) == [data]
    assert capsys.readouterr().err == f"note: {tmp_path}: not read, as hidden, are .b.jsonl, .cache, .jsonl\n"
    assert find_sources([str(tmp_path / "**")]) == [data]
    assert (
        capsys.readouterr().err
        == f"note: {tmp_path}/**: not read, as hidden, are .b.jsonl, .cache, .jsonl, c.jsonl\n"
    )


def test_a_folder_that_a_glob_finds_is_named_unless_its_files_are_found_too(tmp_path, capsys):
    files = [write(tmp_path / name, LINES) for name in ("a.jsonl", "more/b.jsonl")]
    (tmp_path / "nothing").mkdir()
    assert find_sources([str(tmp_path / "*")]) == files[:1]
    assert capsys.readouterr().err == f"note: {tmp_path}/more is a folder: name it to read it\n"
    for pattern in ("**", "**/*"):
        assert find_sources([str(tmp_path / pattern)]) == files
        assert not capsys.readouterr().err


def test_tokenizers_and_token_stores_among_the_data_are_left_out_and_named(tmp_path, capsys):
    data = write(tmp_path / "data" / "a.jsonl", LINES)
    train_tokenizer(["a"], 272).save(tmp_path / "data" / "tok")
    made = ["pretrain", (str(tmp_path / "data"),), str(tmp_path / "data" / "tok")]
    store = PreparationSettings(*made, str(tmp_path / "data" / "deep" / "store"), validation_fraction=0.5)
    assert [source["path"] for source in write_store(store)[0]["sources"]] == [data]
    assert write_store(store)[1], "its own store must not be new data"
    capsys.readouterr()
    for names in (tmp_path / "data", tmp_path / "data" / "**" / "*.json*"):
        assert find_sources([str(names)]) == [data]
        assert capsys.readouterr().err.splitlines() == [
            f"note: {tmp_path}/data/deep/store is a token store: not read as data",
            f"note: {tmp_path}/data/tok is a tokenizer: not read as data",
        ]
    for product in ("tok", "deep/store", "deep/store/validation"):
        with pytest.raises(UserError, match=f"data/{product} is a to.*; name the files"):
            find_sources([str(tmp_path / "data" / product)])
    assert find_sources([str(tmp_path / "data" / "tok" / "tok*r.json")]) == [
        str(tmp_path / "data" / "tok" / "tokenizer.json")
    ]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_what_stands_before_the_end_of_a_truncated_file_is_read(tmp_path, name, share):
    rows = [{"text": random.Random(n).randbytes(200).hex()} for n in range(2000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = gzip.compress(lines) if name.endswith("gz") else zstd(lines)
    source = write(tmp_path / name, whole[: int(share * len(whole))])
    read = [value for value in values(source) if value]
    assert read == rows[: len(read)]
    assert len(read) >= (share - 0.3) * len(rows)  # zstd gives whole blocks of 128 kB only
    assert faults(source)[-1][1] == "compressed data ends early"


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_zeros_that_pad_a_compressed_file_are_no_damage(tmp_path, name, pack):
    padding = bytes(PACKED_BYTES + 1)
    source = write(tmp_path / name, pack(LINES[:1000]) + padding + pack(LINES[1000:]) + padding)
    assert values(source) == ROWS
    write(tmp_path / name, pack(LINES) + padding + b"xx")
    assert faults(source) == [(301, "compressed data is damaged")]


def test_damage_in_a_compressed_file_costs_what_follows(tmp_path):
    whole = bytearray(gzip.compress(LINES))
    whole[-5] ^= 1  # of the checksum, after all the data
    source = write(tmp_path / "a.jsonl.gz", whole)
    assert faults(source)[-1][1] == "compressed data is damaged"
    assert write(tmp_path / "b.jsonl.gz", b"not gzip") and faults(str(tmp_path / "b.jsonl.gz")) == [
        (1, "compressed data is damaged")
    ]


def test_a_map_in_a_parquet_file_is_an_object(tmp_path):
    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    for pairs in ([("x", "1")], [("x", "1"), ("x", "2")]):
        table = pyarrow.table({"arguments": pyarrow.array([pairs], kind)})
        pyarrow.parquet.write_table(table, tmp_path / f"{len(pairs)}.parquet")
    assert values(str(tmp_path / "1.parquet")) == [{"arguments": {"x": "1"}}]
    with pytest.raises(UserError, match="duplicate key was 'x'"):
        values(str(tmp_path / "2.parquet"))


def test_the_name_of_a_parquet_file_is_no_pattern(tmp_path):
    parquet(tmp_path / "a1.parquet", [{"text": "of another file"}])
    for name in ("a[1].parquet", "a*.parquet", "a::b.parquet", "zip:a.parquet"):
        assert values(parquet(tmp_path / name)) == ROWS


def test_pictures_that_a_table_names_are_neither_opened_nor_fetched(tmp_path):
    features = {"text": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    row = {"text": "a", "image": {"bytes": None, "path": str(tmp_path / "secret")}}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("text", pyarrow.string()), ("image", kind)])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    table = pyarrow.Table.from_pylist([row], schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    for source in (tmp_path / "train.parquet", f"hub:{tmp_path}"):
        assert values(source) == [{"text": "a", "image": {"path": row["image"]["path"]}}]


def test_bytes_in_parquet_are_the_text_that_they_hold_or_none(tmp_path):
    source = parquet(tmp_path / "a.parquet", [{"text": "法国".encode(), "n": 1}, {"text": b"\xff", "n": 2}])
    first, second = values(source)
    assert first == {"text": "法国", "n": 1} and second["n"] == 2
    with pytest.raises(RecordError, match="text is not a string"):
        texts_of(second)


def test_a_broken_parquet_file_is_told_of_once(tmp_path, monkeypatch):
    import datasets  # takes a second, and every worker reads every file

    said = io.StringIO()
    datasets.logging.set_verbosity_warning()
    monkeypatch.setattr(logging.getLogger("datasets").handlers[0], "stream", said)
    with pytest.raises(UserError, match="cannot be read: Parquet magic bytes"):
        values(write(tmp_path / "a.parquet", b"x" * 100))
    assert not said.getvalue()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100])
def test_broken_parquet_is_a_user_error(tmp_path, content):
    source = parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for broken in (content, whole[: len(whole) // 2], whole[:-4]):
        write(tmp_path / "a.parquet", broken)
        with pytest.raises(UserError, match="a.parquet"):
            check_sources([source])
            values(source)


def test_objects_of_a_json_file_keep_their_lines(tmp_path):
    content = b'\xef\xbb\xbf[{"a": 1},\r\n{"b":\n  2}, 3,\n\n "x", {"c": [{"d": "}{]["}]}]\n'
    assert b"".join(as_json_lines("a.json", [content[:9], content[9:]])) == (
        b'{"a": 1}\n{"b":   2}\n3\n\n"x"\n{"c": [{"d": "}{]["}]}\n'
    )
    source = write(tmp_path / "a.json", content)
    assert faults(source) == [(3, "not a JSON object"), (5, "not a JSON object")]
    assert values(write(tmp_path / "a.json", b'{"a":\n 1}\n{"a": 2}')) == [{"a": 1}, {"a": 2}]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path):
    source = write(tmp_path / "a.json", b'{"a": 1}\n{"a"\n\n{"a": 2}\n')
    assert faults(source) == [(2, "not JSON")] and values(source)[-1] == {"a": 2}


@pytest.mark.parametrize("indent", [None, 0, 1])
@pytest.mark.parametrize("damage", [b"\xff", b"\\", b"\x00", b"{", b"}", b"]", b""])
def test_a_broken_json_file_is_an_error_and_never_half_read(tmp_path, indent, damage):
    content = json.dumps([{"text": f"a{n}"} for n in range(9)], indent=indent).encode()
    broken = content.replace(b'"a4', damage) if damage else content[: len(content) // 2]
    with pytest.raises(UserError, match=r"^.*a.json(\.gz)?( line \d+)?: [^\n]*$"):
        values(write(tmp_path / "a.json", broken))
    with pytest.raises(UserError, match="a.json.gz: compressed data ends early$"):
        values(write(tmp_path / "a.json.gz", gzip.compress(content)[:-9]))


def test_hostile_json_costs_a_line_of_message(tmp_path, monkeypatch):
    for deep in (b'[{"a": 1}, ' + b"[" * 3000, b'[{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}]"):
        with pytest.raises(UserError, match="a.json line 1: n"):
            values(write(tmp_path / "a.json", deep))
    source = write(tmp_path / "a.json", b'[{"a": ' + b"1" * 5000 + b'},\n{"a": 2}]')
    assert faults(source) == [(1, "not JSON")] and values(source)[1] == {"a": 2}
    monkeypatch.setattr("dataset.blocks.MOST_JSON_BYTES", 2**20)
    monkeypatch.setattr("dataset.blocks.CHUNK_BYTES", 1000)
    chunks = iter([b'{"a": [0'] + [b",0" * 2**18] * 99)
    with pytest.raises(
        UserError, match="a.json: expected at most 1 MB of JSON in one piece; convert it to .jsonl"
    ):
        list(as_json_lines("a.json", chunks))
    assert len(list(chunks)) > 90, "a bomb must not be unpacked further than it is read"


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_random_bytes_among_good_records_lose_none(tmp_path, monkeypatch, name):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", 2000)
    noise = random.Random(0)
    lines = []
    for row in ROWS:
        junk = noise.randbytes(noise.randrange(60)).replace(b"\n", b"").replace(b'"', b"").replace(b"{", b"")
        lines += [junk, json.dumps(row, ensure_ascii=False).encode()]
    content = (b"\n\n" if name == "a.txt" else b"\n").join(lines)
    content = gzip.compress(content) if name.endswith("gz") else content
    content = zstd(content) if name.endswith("zst") else content
    read = [value for value in values(write(tmp_path / name, content)) if value]
    if name == "a.txt":
        read = [json.loads(value["text"]) for value in read if value["text"].startswith('{"text"')]
    assert [row for row in read if "n" in row] == ROWS


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.jsonl", "a.json", "a.txt", "a.json.gz", "a.txt.zst"]),
)
def test_any_bytes_give_records_or_faults(tmp_path_factory, content, name):
    source = write(tmp_path_factory.mktemp("noise") / name, content)
    try:
        records = list(read_records([source]))
    except UserError:
        records = []
        assert ".json" in name
    for record in records:
        assert (record.value is None) == bool(record.fault) and record.line >= 1


def test_a_record_too_long_to_hold_costs_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.blocks.CHUNK_BYTES", 64)
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", 200)
    monkeypatch.setattr("dataset.blocks.LONGEST_RECORD_BYTES", 2**20)
    good = b'{"text": "a"}\n'
    content = good * 3 + b'{"text": "' + b"x" * 2**21 + b'"}\n' + good * 2 + b'{"text": "' + b"x" * 2**21
    source = write(tmp_path / "a.jsonl", content)
    assert faults(source) == [(4, "longer than 1 MB"), (7, "longer than 1 MB")]
    assert [value for value in values(source) if value] == [{"text": "a"}] * 5
    paragraphs = b"a\n\n" + b"x" * 2**21 + b"\n \nb"
    assert values(write(tmp_path / "a.txt", paragraphs)) == [{"text": "a"}, None, {"text": "b"}]


@pytest.mark.parametrize("separator", ["blank_line", "@@"])
def test_documents_around_one_too_long_are_kept_however_their_ends_are_cut(tmp_path, monkeypatch, separator):
    sizes = {"SEPARATOR_BYTES": 4, "CHUNK_BYTES": 50, "BLOCK_BYTES": 60, "LONGEST_RECORD_BYTES": 400}
    for name, size in sizes.items():
        monkeypatch.setattr(f"dataset.blocks.{name}", size)
    draw = random.Random(0)
    for _ in range(300):
        kept, content = [], ""
        for n in range(draw.randint(1, 6)):
            spaces, is_long = " " * draw.choice([0, 3, 10, 40]), draw.random() < 0.3
            text = (
                "".join(draw.choice(["g", "g\n", "g  "]) for _ in range(800)) + "g" if is_long else f"{n}\nk"
            )
            kept.append(None if is_long else {"text": text})
            content += text + "\n" + spaces + (separator if separator == "@@" else "") + "\n"
        source = write(tmp_path / "a.txt", content.encode())
        assert [each.value for each in read_records([source], TextRules(separator))] == kept


def test_long_records_come_whole(tmp_path):
    row = {"text": "法" * 2_000_000}
    content = json.dumps(row).encode() + b"\n" + LINES
    for name in ("a.jsonl", "a.json"):
        assert values(write(tmp_path / name, content)) == [row, *ROWS]


def test_blocks_are_the_same_at_every_reading_and_end_with_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", 500)
    source = write(tmp_path / "a.jsonl", LINES)
    blocks = list(read_blocks(source))
    assert blocks == list(read_blocks(source)) and len(blocks) > 5
    assert b"".join(block.content for block in blocks) == LINES
    assert all(block.content.endswith(b"}\n") for block in blocks)
    lines = 1
    for block in blocks:
        assert block.line == lines
        lines += block.content.count(b"\n")
