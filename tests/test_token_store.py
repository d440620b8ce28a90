import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from dataset.command_line import run
from dataset.conversation import TARGET, render
from dataset.formats import parse_messages
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import Part, StoreWriter, TokenStore, open_stores
from dataset.tokenizer import Tokenizer, train_tokenizer
from model.errors import UserError
from scripts.prepare_data import main

TOKENIZER = train_tokenizer(["法国的首都是巴黎 Paris"], 300)
CHATS = [
    {
        "conversations": [
            {"role": "user", "content": "法国?"},
            {"role": "assistant", "content": "巴黎<|im_end|>"},
        ]
    },
    {"conversations": [{"role": "user", "content": "C\n\nQ"}, {"role": "assistant", "content": "A"}]},
]
TEXTS = [{"text": "法国的首都"}, {"text": "Paris"}, {"text": "a"}]


@pytest.fixture
def prepare(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")

    def prepare(kind, records, **changes):
        data = tmp_path / f"{kind}.jsonl"
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        data.write_text("".join(line + "\n" for line in lines))
        paths = {
            "data": (str(data),),
            "tokenizer": str(tmp_path / "tokenizer"),
            "out": str(tmp_path / "store"),
        }
        return write_store(PreparationSettings(kind, **(paths | changes)))

    return prepare


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("sft", {"text_column": "body"}), ("pretrain", {"question_position": "first"})],
)
def test_a_setting_of_the_other_kind_is_refused(prepare, kind, setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} .* changes nothing of {kind} data"):
        prepare(kind, {"sft": CHATS, "pretrain": TEXTS}[kind], **setting)


def test_data_may_have_names_that_are_not_utf_8(prepare, tmp_path):
    name = str(tmp_path / os.fsdecode("法国.jsonl".encode("gb18030")))
    Path(name).write_text(json.dumps(TEXTS[0]) + "\n{\n")
    manifest, _ = prepare("pretrain", [], data=(name,), max_reject_fraction=0.5)
    assert manifest["sources"][0]["path"] == name
    assert json.loads((tmp_path / "store" / "rejects.jsonl").read_text())["file"] == name
    with pytest.raises(UserError, match="expected a name in UTF-8"):
        prepare("pretrain", TEXTS, out=name.removesuffix(".jsonl"))


def test_a_place_below_more_folders_than_python_makes_is_refused(prepare):
    with pytest.raises(UserError, match="expected at most 300 folders in each other"):
        prepare("pretrain", TEXTS, out="y/" * 1500 + "z")


def test_a_chat_store_gives_back_what_was_rendered(prepare, tmp_path):
    manifest, _ = prepare("sft", CHATS)
    store = TokenStore(tmp_path / "store", TOKENIZER)
    expected = [render(parse_messages(record), TOKENIZER) for record in CHATS]
    assert len(store) == 2 and store.kind == "sft" and store[0].ids.dtype == np.uint16
    for document, rendered in zip([store[0], store[1]], expected, strict=True):
        assert document.ids.tolist() == rendered.ids.tolist()
        assert document.codes.tolist() == rendered.codes.tolist()
    assert store.lengths.tolist() == [len(rendered) for rendered in expected]
    assert manifest["tokens"] == store.num_tokens == sum(map(len, expected))
    assert manifest["targets"] == sum(int(rendered.targets.sum()) for rendered in expected)
    assert manifest["bytes"] == len("法国?巴黎<|im_end|>C\n\nQA".encode())
    assert manifest["target_bytes"] == len("巴黎<|im_end|>A".encode())


def test_a_text_stands_between_document_ends(prepare, tmp_path):
    manifest, _ = prepare("pretrain", TEXTS)
    store = TokenStore(tmp_path / "store")
    end = TOKENIZER.endoftext_id
    for i, record in enumerate(TEXTS):
        assert store[i].ids.tolist() == [end, *TOKENIZER.encode(record["text"]), end]
        assert store[i].targets.all()
    assert manifest["targets"] == manifest["tokens"] - 3
    assert manifest["target_bytes"] == manifest["bytes"] == len("法国的首都Parisa".encode())


def test_the_store_carries_its_tokenizer(prepare, tmp_path):
    prepare("pretrain", TEXTS)
    shutil.rmtree(tmp_path / "tokenizer")
    assert TokenStore(tmp_path / "store").tokenizer.fingerprint == TOKENIZER.fingerprint


def test_preparing_again_finds_the_store_finished(prepare, tmp_path):
    prepare("sft", CHATS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    _, was_finished = prepare("sft", CHATS)
    assert was_finished
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before


def test_other_inputs_are_refused_unless_overwritten(prepare, tmp_path):
    prepare("sft", CHATS)
    with pytest.raises(UserError, match="prepared with other sources"):
        prepare("sft", CHATS[:1])
    with pytest.raises(UserError, match="prepared with other question_position"):
        prepare("sft", CHATS, question_position="first")
    assert len(TokenStore(tmp_path / "store")) == 2
    prepare("sft", CHATS[:1], overwrite=True)
    assert len(TokenStore(tmp_path / "store")) == 1


def test_a_folder_of_something_else_is_never_replaced(prepare, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "diary.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="exists already"):
            prepare("sft", CHATS, overwrite=overwrite)
    assert (tmp_path / "store" / "diary.txt").read_text() == "dear"


def test_rejects_stand_in_the_manifest_and_beside_it(prepare, tmp_path):
    manifest, _ = prepare("pretrain", [*TEXTS, {"text": ""}, "{"], max_reject_fraction=0.4)
    assert manifest["rejects"] == {"text is empty": 1, "not JSON": 1}
    assert manifest["records"] == 5 and manifest["documents"] == 3
    listed = (tmp_path / "store" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [4, 5]


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "offsets", "manifest", "version"])
def test_a_damaged_store_does_not_open(prepare, tmp_path, change):
    prepare("sft", CHATS)
    ids, offsets, manifest = (
        tmp_path / "store" / name for name in ("ids-00000.bin", "lengths-00000.bin", "manifest.json")
    )
    if change == "shorter":
        ids.write_bytes(ids.read_bytes()[:-1])
    elif change == "longer":
        ids.write_bytes(ids.read_bytes() + b"x")
    elif change == "gone":
        ids.unlink()
    elif change == "offsets":
        offsets.write_bytes(offsets.read_bytes()[:-4] + bytes(4))
    elif change == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 0'))
    with pytest.raises(UserError, match="prepare the data again"):
        TokenStore(tmp_path / "store")


def test_a_flipped_bit_is_found_when_the_store_is_prepared_again(prepare, tmp_path):
    prepare("sft", CHATS)
    codes = tmp_path / "store" / "codes-00000.bin"
    codes.write_bytes(bytes([codes.read_bytes()[0] ^ 1]) + codes.read_bytes()[1:])
    with pytest.raises(UserError, match="codes-00000.bin is damaged"):
        prepare("sft", CHATS)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"dtype": "int16"},
        {"dtype": ["uint16"]},
        {"kind": ["sft"]},
        {"kind": "pretrain"},
        {"tokens": 1e300},
        {"tokens": -1},
        {"documents": 1},
        {"documents": True},
        {"targets": "9"},
        {"shards": {}},
        {"shards": []},
        {"shards": [{"documents": 2.0, "tokens": 10}]},
        {"shards": [{"documents": 2**62, "tokens": 2**62}]},
        {"shards": [None]},
        {"files": []},
        {"files": {"../../secret": {"bytes": 1, "sha256": ""}}},
        {"tokenizer": None},
        {"tokenizer": {"fingerprint": 7}},
    ],
)
def test_a_manifest_of_wrong_values_is_named_as_damaged(prepare, tmp_path, change):
    manifest, _ = prepare("sft", CHATS)
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match="manifest.json is damaged.*; prepare the data again"):
        TokenStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ids", 65_535, "an id that its tokenizer has not"),
        ("codes", 4, "no role"),
        ("codes", 144, "passage that is an answer"),
    ],
)
def test_tokens_that_nothing_can_read_are_refused(tmp_path, field, value, message):
    """As another program may have written them, with a manifest that agrees."""
    writer = StoreWriter(tmp_path, "sft", TOKENIZER)
    part = Part(np.zeros(3, writer.dtype), np.full(3, TARGET | 2, np.uint8), np.array([3], np.uint32))
    getattr(part, field)[1] = value
    writer.append(part)
    writer.finish({})
    with pytest.raises(UserError, match=message):
        TokenStore(tmp_path)


def test_lengths_that_agree_only_in_sum_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.token_store.SHARD_TOKENS", 1)
    writer = StoreWriter(tmp_path, "pretrain", TOKENIZER)
    for _ in range(2):
        writer.append(Part(np.zeros(4, writer.dtype), None, np.array([4], np.uint32)))
    writer.close()
    for shard, length in enumerate((5, 3)):
        (tmp_path / f"lengths-{shard:05}.bin").write_bytes(np.uint32(length).tobytes())
    writer.finish({})
    with pytest.raises(UserError, match="lengths .* are damaged"):
        TokenStore(tmp_path)


def test_a_store_that_is_replaced_is_read_on_and_one_that_is_cut_is_an_error(prepare, tmp_path):
    prepare("sft", CHATS)
    expected, store = TokenStore(tmp_path / "store")[1].ids.tolist(), TokenStore(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    shutil.rmtree(tmp_path / "store")
    assert store[1].ids.tolist() == expected
    copy = TokenStore(tmp_path / "copy")
    os.truncate(tmp_path / "copy" / "ids-00000.bin", 70)
    assert copy[0].ids.tolist()
    with pytest.raises(UserError, match="copy/ids-00000.bin became shorter while it was read"):
        copy[1]


def test_a_store_that_is_let_go_closes_its_files(prepare, tmp_path):
    prepare("sft", CHATS)
    before = len(os.listdir("/dev/fd"))
    store = TokenStore(tmp_path / "store")
    assert len(os.listdir("/dev/fd")) == before + 3
    del store
    assert len(os.listdir("/dev/fd")) == before


def test_another_tokenizer_does_not_open_the_store(prepare, tmp_path):
    prepare("sft", CHATS)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenStore(tmp_path / "store", train_tokenizer(["other"], 280))
    with pytest.raises(UserError, match="no token store"):
        TokenStore(tmp_path)


def test_stores_that_do_not_fit_together_are_refused(prepare, tmp_path):
    train_tokenizer(["other"], 280).save(tmp_path / "other")
    prepare("sft", CHATS, out=str(tmp_path / "a"))
    prepare("pretrain", TEXTS, out=str(tmp_path / "b"))
    prepare("sft", CHATS, out=str(tmp_path / "c"), tokenizer=str(tmp_path / "other"))
    assert len(open_stores([tmp_path / "a", tmp_path / "a"])) == 2
    with pytest.raises(UserError, match="pretrain data"):
        open_stores([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="different tokenizers"):
        open_stores([tmp_path / "a", tmp_path / "c"])


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE({f"t{i}": i for i in range(2**16)}, []))
    backend.decoder = decoders.ByteLevel()
    writer = StoreWriter(tmp_path, "pretrain", Tokenizer(backend))
    writer.append(Part(np.array([2**16 + 3, 5], writer.dtype), None, np.array([2], np.uint32)))
    writer.finish({})
    store = TokenStore(tmp_path)
    assert store[0].ids.dtype == np.uint32 and store[0].ids.tolist() == [2**16 + 3, 5]


def prepare_by_command(tmp_path, *flags):
    paths = ["--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "store")]
    return ["prepare_data", "--kind", "sft", "--data", str(tmp_path / "sft.jsonl"), *paths, *flags]


def test_the_command_prints_a_summary(prepare, tmp_path, monkeypatch, capsys):
    prepare("sft", CHATS)
    monkeypatch.setattr("sys.argv", prepare_by_command(tmp_path, "--overwrite"))
    main()
    assert "documents           2\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", prepare_by_command(tmp_path))
    main()
    assert "prepared already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data file not found"),
        ("", "data file is empty"),
        ("\n\n", "no records"),
        ('{"messages": [\n', "line 1: not JSON; 1 of 1 records"),
        ('{"text": "a"}\n', "no chat format"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, content, message):
    TOKENIZER.save(tmp_path / "tokenizer")
    if content is not None:
        (tmp_path / "sft.jsonl").write_text(content)
    before = sorted(Path(tmp_path).iterdir())
    monkeypatch.setattr("sys.argv", prepare_by_command(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        run(main)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error and error.count("\n") == 1
    assert sorted(Path(tmp_path).iterdir()) == before


def test_every_document_of_a_long_shard_is_found_and_every_part_of_it(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 9, 200).astype(np.uint32)
    ids, ends = np.arange(lengths.sum(), dtype=np.uint16) % 300, np.cumsum(lengths)
    writer = StoreWriter(tmp_path, "pretrain", TOKENIZER)
    writer.append(Part(ids, None, lengths))
    writer.finish({})
    store = TokenStore(tmp_path)
    assert [store[i].ids.tolist() for i in range(200)] == [each.tolist() for each in np.split(ids, ends[:-1])]
    for max_tokens in (1, 30, 2000):
        parts = list(store.parts(max_tokens))
        assert np.concatenate([part.ids for part in parts]).tolist() == ids.tolist()
        assert all(sum(part.lengths) <= max_tokens or len(part.lengths) == 1 for part in parts)
