"""Where documents end in .txt files and at marks that texts spell: none lost, none joined, none cut."""

import gzip
import json

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.preparation import PreparationSettings, write_store
from dataset.records import read_records
from dataset.text_files import Marks, TextRules
from dataset.token_store import TokenStore
from dataset.tokenizer import train_tokenizer
from dataset.tokenizer_sample import Sample, TokenizerSettings
from model.errors import UserError
from scripts.prepare_data import summary

TOKENIZER = train_tokenizer(["One day a fox went to the river."] * 9, 300)
PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
STORIES = [
    f"A fox, number {n}.\n\n“I ride,” it said.\n\n{'It was glad. ' * (n % 5 + 1)}End." for n in range(40)
]


def texts(path, content, *rules):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [record.value["text"] for record in read_records([str(path)], TextRules(*rules))]


def prepare(tmp_path, name, content, **settings):
    """Return the manifest and texts of a pretraining store."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    TOKENIZER.save(tmp_path / "tokenizer")
    paths = (str(tmp_path / name),), str(tmp_path / "tokenizer"), str(tmp_path / "out")
    manifest, _ = write_store(PreparationSettings("pretrain", *paths, **settings))
    store = TokenStore(tmp_path / "out")
    return manifest, [store.tokenizer.decode(store[i].ids, True) for i in range(len(store))]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("blank_line", ["a\nb", "c", "== x\n==\nd"]),
        ("line", ["a", "b", "c", "== x", "==", "d"]),
        ("file", ["a\nb\n \n\nc\n\t\n== x\n==\nd"]),
        ("==", ["a\nb\n \n\nc\n\t\n== x", "d"]),
        (" d", ["a\nb\n \n\nc\n\t\n== x\n=="]),
    ],
)
def test_what_ends_a_document_of_a_text_file_is_a_setting(
    tmp_path, monkeypatch, newline, separator, expected
):
    content = "\ufeffa\nb\n \n\nc\n\t\n== x\n==\nd".replace("\n", newline)
    for block_bytes in (1, 5, 2**22):
        monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", block_bytes)
        for ending, pack in PACKERS.items():
            assert texts(tmp_path / f"a.txt{ending}", pack(content.encode()), separator) == expected


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "form", ["{}\n<|endoftext|>\n", "<|endoftext|>{}", "{}</s>\n", "<s>{}</s>\n\n", "<bos>{}\n\n"]
)
@pytest.mark.parametrize("block_bytes", [1, 300, 2**22])
def test_a_mark_spelt_in_a_text_file_ends_its_documents(tmp_path, monkeypatch, form, newline, block_bytes):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", block_bytes)
    content = "".join(form.format(story) for story in STORIES).replace("\n", newline)
    manifest, documents = prepare(tmp_path, "stories.txt", content)
    assert documents == STORIES
    counts = manifest["marks"]
    assert set(counts["found"].values()) == {40}
    assert manifest["documents"] == manifest["records"] - counts["records"] + counts["documents"]


def test_marks_are_text_where_asked_so_and_chats_stay_as_they_are(tmp_path):
    manifest, documents = prepare(tmp_path, "a.txt", "a\n<|endoftext|>\nb\n\nc", text_marks="keep")
    assert documents == ["a\n<|endoftext|>\nb", "c"] and manifest["marks"]["found"] == {}
    assert prepare(tmp_path, "a.txt", "a\n<|endoftext|>\nb\n\nc", overwrite=True)[1] == ["a", "b\n\nc"]
    turns = [{"role": role, "content": "</s><|im_end|>"} for role in ("user", "assistant")]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
    sample = Sample(TokenizerSettings((str(tmp_path / "chat.jsonl"),), "tok"))
    assert list(sample.texts()) == ["</s><|im_end|>"] * 2


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("no marks: a < b, <b>, <|x|>\n", ["no marks: a < b, <b>, <|x|>\n"]),
        ("<|im_start|>One.<|im_end|> <|im_start|>Two.<|im_end|>", ["One.", "Two."]),
        ("<s>[INST] Name a bird. [/INST] Heron. </s>", ["Name a bird.\nHeron."]),
        ("a</s>b</s> <|endoftext|><|endoftext|>c", ["a", "b", "c"]),
        ("<|endoftext|>\n", []),
        ("It cost <s>9</s> 5 and <s>b</s>", ["It cost <s>9</s> 5 and <s>b</s>"]),
        ("<s>9</s> 5 <|endoftext|>", ["<s>9</s> 5"]),
        (
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>system\nnext",
            ["hi\nyes", "next"],
        ),
        ("<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>", ["hi\nyes"]),
        ("<|system|>\nS</s>\n<|user|>\nhi</s>\n<|assistant|>\nyes</s>", ["S\nhi\nyes"]),
        ("<|user|>\nhi<|end|>\n<|assistant|>\nyes<|end|>", ["hi\nyes"]),
        ("<｜User｜>hi<｜Assistant｜>yes<｜end▁of▁sentence｜>", ["hi\nyes"]),
        ("a<|eod|>b<eod>", ["a", "b"]),
    ],
)
def test_a_text_is_divided_at_marks_of_documents_and_joined_at_those_of_turns(text, documents):
    marks = Marks()
    assert marks.divide(text) == documents
    assert marks.records == bool(marks.found) and marks.documents == len(documents) * marks.records


def test_what_only_looks_like_a_mark_stays_text_and_is_told(tmp_path):
    manifest, documents = prepare(tmp_path, "a.txt", "a <|fim_hole|> b<|endoftext|>\n<|fim_hole|> c")
    assert documents == ["a <|fim_hole|> b", "<|fim_hole|> c"]
    assert summary(manifest)["trained as text"].startswith("2 <|fim_hole|>, which look like marks")
    assert "trained as text" not in summary(prepare(tmp_path, "a.txt", "a <| b |>", overwrite=True)[0])


def test_a_tokenizer_learns_no_mark(tmp_path):
    lines = [
        json.dumps({"text": f"<|im_start|>{n} fox<|im_end|> <|im_start|>x{n}<|im_end|>"}) for n in range(99)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    sample = Sample(TokenizerSettings((str(tmp_path / "a.jsonl"),), "tok", max_reject_fraction=0.0))
    assert not any("|" in text or "im_" in text for text in sample.texts())
    assert sample.marks.found == {"<|im_start|>": 198, "<|im_end|>": 198}


def test_a_store_of_another_separator_is_another_store(tmp_path):
    prepare(tmp_path, "a.txt", "a\nb")
    with pytest.raises(UserError, match="prepared with other document_separator"):
        prepare(tmp_path, "a.txt", "a\nb", document_separator="line")
    with pytest.raises(UserError, match="prepared with other text_marks"):
        prepare(tmp_path, "a.txt", "a\nb", text_marks="keep")
    for separator, message in {"line": "none of the data is a .txt", " ": "expected blank_line"}.items():
        with pytest.raises(UserError, match=message):
            prepare(tmp_path, "a.jsonl", '{"text": "a"}', document_separator=separator)
    with pytest.raises(UserError, match="text_marks keep changes nothing of sft data"):
        PreparationSettings("sft", ("a.jsonl",), "tok", "out", text_marks="keep")


def test_the_summary_doubts_documents_that_look_cut_or_joined(tmp_path):
    manifest, _ = prepare(tmp_path, "a.txt", "a\n\nb\n\nc")
    assert (
        summary(manifest)["documents"]
        == "3: half of them have less than 5 tokens; is this where documents end?"
    )
    manifest, _ = prepare(tmp_path, "a.txt", "One day a fox.\n" * 9000, overwrite=True)
    assert summary(manifest)["documents"] == f"1: {tmp_path}/a.txt is one of them; see --document_separator"
    manifest, _ = prepare(tmp_path, "a.txt", "One day a fox went.\n\n" * 9, overwrite=True)
    assert summary(manifest)["documents"] == "9"


words = st.text("ab<|> é中。", min_size=1, max_size=9).map(lambda text: f"x{text}y")
paragraphs = st.lists(words, min_size=1, max_size=3).map("\n".join)


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(paragraphs, min_size=1, max_size=8),
    separator=st.sampled_from(["blank_line", "line", "MARK", "<|endoftext|>"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    ending=st.sampled_from(list(PACKERS)),
    block_bytes=st.sampled_from([1, 7, 2**22]),
)
def test_documents_in_are_documents_out(tmp_path_factory, documents, separator, newline, ending, block_bytes):
    if separator == "line":
        documents = "\n".join(documents).split("\n")
    between = {"blank_line": "\n \n", "line": "\n", "MARK": "\nMARK\n", "<|endoftext|>": "\n<|endoftext|>\n"}
    content = (between[separator].join(documents) + "\n").replace("\n", newline).encode()
    rules = ("blank_line",) if separator == "<|endoftext|>" else (separator,)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset.blocks.BLOCK_BYTES", block_bytes)
        patch.setattr("dataset.blocks.CHUNK_BYTES", 5)
        found = texts(tmp_path_factory.mktemp("a") / f"a.txt{ending}", PACKERS[ending](content), *rules)
    marks = Marks()
    assert [document for text in found for document in marks.divide(text)] == documents
    assert marks.found.total() == (len(documents) - 1) * (separator == "<|endoftext|>")
