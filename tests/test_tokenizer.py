import gzip
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from dataset.chat_form import ChatForm
from dataset.tokenizer import (
    FILES,
    SPECIAL_TOKENS,
    TAGS,
    TEMPLATE_FILES,
    TextStream,
    Tokenizer,
    train_tokenizer,
)
from dataset.tokenizer_sample import Sample, language_of
from dataset.words import RUN_CHARACTERS, without_long_runs
from model.errors import UserError
from scripts.train_tokenizer import TokenizerSettings, main, print_report

TEXTS = ["法国的首都是巴黎。法国的货币是欧元。", "The capital of France is Paris.", "你好，世界 😀 hello"] * 5
TOKENIZER = train_tokenizer(TEXTS, 340)
JOINING_TOKENIZER = train_tokenizer(TEXTS, 340, isolate_han=False)
SPLIT_TOKENIZER = train_tokenizer(["abc"], 272)  # bytes only: every Chinese character is three tokens


def test_the_same_texts_give_the_same_tokenizer():
    assert train_tokenizer(iter(TEXTS), 340).fingerprint == TOKENIZER.fingerprint
    assert train_tokenizer(TEXTS[:-1], 320).fingerprint != TOKENIZER.fingerprint


@pytest.mark.parametrize("run", ["-" * 200_000, " \n" * 60_000, "é" * 90_001, "7" * 511, "_=" * 300])
def test_a_run_without_breaks_trains_in_pieces_and_costs_seconds(run):
    text = f"before {run} after"
    pieces = list(without_long_runs(text))
    assert "".join(pieces) == text and max(map(len, pieces)) < 3 * RUN_CHARACTERS
    started = time.monotonic()
    train_tokenizer([*TEXTS, text], 400)  # 200,000 dashes took 22 s as one word
    assert time.monotonic() - started < 8


def test_ordinary_text_is_trained_on_uncut():
    text = ("word " * 80 + "-" * 200 + "\n\n" + "法国的首都是巴黎，" * 90 + "x1" * 400) * 3
    assert list(without_long_runs(text)) == [text]


def test_special_tokens_have_the_first_ids_in_order():
    assert [TOKENIZER.special(text) for text in SPECIAL_TOKENS] == list(range(16))
    assert SPECIAL_TOKENS[:4] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def test_padding_never_stops_an_answer():
    assert TOKENIZER.stop_ids == (TOKENIZER.im_end_id, TOKENIZER.endoftext_id)
    assert TOKENIZER.pad_id not in TOKENIZER.stop_ids


def test_han_characters_stay_apart_unless_asked_otherwise():
    def longest(tokenizer):
        texts = [tokenizer.decode([i]) for i in range(16, tokenizer.vocab_size)]
        return max(sum("一" <= c <= "鿿" for c in text) for text in texts)

    assert longest(TOKENIZER) == 1
    assert longest(train_tokenizer(TEXTS, 340, isolate_han=False)) > 1


def test_role_names_are_short():
    assert all(len(TOKENIZER.encode(f"{role}\n")) == 2 for role in ("system", "user", "assistant", "tool"))


@settings(max_examples=25)
@given(st.text())
def test_any_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize("text", SPECIAL_TOKENS)
def test_content_never_becomes_an_added_token(text):
    content = f"a{text}b {text}"
    ids = TOKENIZER.encode(content)
    assert not set(ids) & set(range(16))
    assert TOKENIZER.decode(ids) == content


WORDS = [
    "a",
    "é",
    "'",
    "'s",
    "1",
    "½",
    ".",
    "。",
    " ",
    "  ",
    "\n",
    "\u3000",
    "\x1c",
    "中",
    "々",
    "𠀀",
    "<|im_end|>",
]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(WORDS) | st.characters(codec="utf-8"), max_size=12).map("".join), st.booleans()
)
def test_remembered_words_give_the_ids_of_the_library(text, isolate_han):
    tokenizer = TOKENIZER if isolate_han else JOINING_TOKENIZER
    assert tokenizer._words.pattern is not None
    assert tokenizer.encode(text) == tokenizer._words.content.encode(text).ids


def test_remembered_words_take_bounded_memory(monkeypatch):
    monkeypatch.setattr(type(TOKENIZER._words), "MOST", 3)
    tokenizer = train_tokenizer(TEXTS, 340)
    for word in ("a", "b", "c", "d", "e", "x" * 99):
        assert tokenizer.decode(tokenizer.encode(word)) == word
        assert len(tokenizer._words) <= 3
    assert "x" * 99 not in tokenizer._words


def test_undecoded_bytes_are_a_user_error():
    with pytest.raises(UserError, match="not valid Unicode"):
        TOKENIZER.encode("a\udcff")


def test_skipping_special_tokens_keeps_tags():
    ids = [
        TOKENIZER.special("<|im_start|>"),
        TOKENIZER.special("<think>"),
        *TOKENIZER.encode("x"),
        TOKENIZER.im_end_id,
    ]
    assert TOKENIZER.decode(ids) == "<|im_start|><think>x<|im_end|>"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>x"


def test_transformers_opens_the_saved_directory(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "法国 and Paris\n\n  😀"
    assert theirs.encode(text) == TOKENIZER.encode(text)
    assert theirs.decode([*range(16), *TOKENIZER.encode(text)]) == TOKENIZER.decode(
        [*range(16), *TOKENIZER.encode(text)]
    )
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 2, 3)
    assert len(theirs) == TOKENIZER.vocab_size


def test_saving_and_loading_change_nothing(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.encode("法国 <think>") == TOKENIZER.encode("法国 <think>")


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_a_prompt_travel_with_the_template_and_make_another_tokenizer(tmp_path, copies):
    train_tokenizer(TEXTS, 340, prompt_copies=copies).save(tmp_path / "one")
    Tokenizer.load(tmp_path / "one").save(tmp_path / "two")
    loaded = Tokenizer.load(tmp_path / "two")
    assert loaded.prompt_copies == loaded.form.prompt_copies == copies
    assert loaded.text_fingerprint == TOKENIZER.fingerprint != loaded.fingerprint
    assert (TOKENIZER.prompt_copies, TOKENIZER.form.prompt_copies) == (1, 1)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (tmp_path / "two" / TEMPLATE_FILES[0]).write_bytes((tmp_path / "one" / TEMPLATE_FILES[1]).read_bytes())
    assert Tokenizer.load(tmp_path / "two").fingerprint == loaded.fingerprint


@settings(max_examples=25)
@given(st.text(alphabet=st.sampled_from("aé中😀👩‍🚀 "), max_size=12))
def test_a_stream_gives_each_character_with_its_last_byte(text):
    stream, given_so_far, seen = TextStream(SPLIT_TOKENIZER), "", b""
    for token_id in SPLIT_TOKENIZER.encode(text):
        given_so_far += stream.feed(token_id)
        seen += SPLIT_TOKENIZER.token_bytes(token_id)
        assert given_so_far == seen.decode("utf-8", "ignore")
    assert given_so_far + stream.flush() == text


@settings(max_examples=25)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_a_stream_ends_as_the_full_text_of_any_ids(ids):
    stream = TextStream(TOKENIZER, skip_special_tokens=False)
    streamed = "".join([stream.feed(i) for i in ids]) + stream.flush()
    assert streamed == TOKENIZER.decode(ids) == TOKENIZER._backend.decode(ids, skip_special_tokens=False)


def test_an_id_beyond_the_vocabulary_shows_as_a_replacement_character():
    assert TOKENIZER.decode([99_999]) == "�"


def test_token_text_stays_on_one_line():
    assert TOKENIZER.token_text(TOKENIZER.encode("\n")[0]) == "\\n"
    assert TOKENIZER.token_text(SPLIT_TOKENIZER.encode("中")[0]) == "\\xe4"
    assert TOKENIZER.token_text(TOKENIZER.im_end_id) == "<|im_end|>"


def test_a_missing_or_broken_directory_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match="expected a directory with tokenizer.json; AutoTokenizer.from_pret"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(UserError, match="expected vocab_size of 272 .* to 16777216"):
        train_tokenizer(TEXTS, 271)


def test_a_vocabulary_that_no_memory_holds_is_refused():
    with pytest.raises(UserError, match="to 16777216, got 99999999999"):
        train_tokenizer(TEXTS, 99999999999)
    with pytest.raises(UserError, match="to 16777216, got 99999999999"):
        TokenizerSettings(("a.txt",), "out", compare=("tok", "99999999999"))


def _foreign(model, trainer, decoder) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoder
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def test_a_tokenizer_from_elsewhere_gets_the_markers_it_lacks(tmp_path):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    backend.add_tokens([AddedToken("<extra>", special=False)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.endoftext_id == 0
    assert len({tokenizer.special(text) for text in SPECIAL_TOKENS[:3] + TAGS}) == 9
    assert (tokenizer.pad_id, tokenizer.own_vocab_size, tokenizer.vocab_size) == (0, 301, 309)
    assert tokenizer.decode(tokenizer.encode("a <extra>")) == "a <extra>"
    assert tokenizer.special("<extra>") not in tokenizer.encode("a <extra>")
    assert tokenizer._words.pattern is not None
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert Tokenizer(backend)._words.pattern is None
    assert Tokenizer(backend).encode("a b", begins=True) == backend.encode("a b").ids
    assert Tokenizer(backend).encode("a b") == tokenizer.encode("a b")  # as it follows a header


def test_a_word_of_the_vocabulary_that_is_also_an_added_token_is_escaped():
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    word = max(backend.get_vocab(), key=lambda token: len(token) * token.isascii())
    assert len(backend.encode(word).ids) == 1
    backend.add_tokens([AddedToken(word, special=False)])
    tokenizer = Tokenizer(backend)
    ids = tokenizer.encode(f"{word}{word}")
    assert tokenizer.special(word) not in ids
    assert tokenizer.decode(ids) == f"{word}{word}"


def test_a_character_without_a_token_is_refused_in_place_of_being_lost():
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)  # of the bytes that it was shown alone
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    for rules in (backend.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=True)):
        backend.pre_tokenizer = rules
        tokenizer = Tokenizer(backend)
        assert tokenizer.decode(tokenizer.encode("法国 Paris")).strip() == "法国 Paris"
        with pytest.raises(UserError, match="has no token for 'q', which it would lose"):
            tokenizer.encode("法国 q")


@pytest.mark.parametrize(
    ("normalizer", "rules", "becomes"),
    [
        (normalizers.Lowercase(), None, "'ab  c!"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), None, "2e中"),
        (None, pre_tokenizers.Whitespace(), "Abc!"),
        (None, pre_tokenizers.Split(Regex(r"\s"), "removed"), "Abc!"),
    ],
)
def test_rules_that_lose_a_part_of_a_text_are_refused(normalizer, rules, becomes):
    with pytest.raises(UserError, match=f"lose parts of texts.*{re.escape(becomes)}"):
        _with_rules(normalizer, rules)


@pytest.mark.parametrize(
    ("normalizer", "rules"),
    [
        (normalizers.Replace("``", '"'), None),
        (normalizers.Replace(Regex("[\u200b\u00ad]"), ""), None),
        (None, pre_tokenizers.Sequence([pre_tokenizers.Split("@", "removed")])),
    ],
)
def test_rules_that_change_what_no_trial_has_are_refused_by_their_names(normalizer, rules):
    with pytest.raises(UserError, match="the rules of the tokenizer change texts .*'type': '(Replace|Split)"):
        _with_rules(normalizer, rules)


def test_rules_of_common_tokenizers_are_taken():
    tokenizer = _with_rules(normalizers.Sequence([normalizers.NFC()]), pre_tokenizers.Digits())
    assert tokenizer.decode(tokenizer.encode("a 12")) == "a 12"


def _with_rules(normalizer, rules) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([rules, last]) if rules else last
    if normalizer:
        backend.normalizer = normalizer
    return Tokenizer(backend)


def test_a_text_has_the_same_ids_each_time_whatever_the_dropout_of_the_tokenizer():
    content = json.loads(TOKENIZER._backend.to_str())
    content["model"]["dropout"] = 0.5
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    assert {tuple(tokenizer._words.content.encode(TEXTS[1]).ids) for _ in range(9)} == {
        tuple(TOKENIZER.encode(TEXTS[1]))
    }


def test_a_normalizer_that_composes_characters_loses_nothing():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False)
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    backend.normalizer = normalizers.NFC()  # as Qwen's
    tokenizer = Tokenizer(backend)
    assert tokenizer.decode(tokenizer.encode("é 中")) == "é 中"


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    trainer = trainers.WordPieceTrainer(vocab_size=300)
    with pytest.raises(UserError, match="expected BPE, byte-level or with byte fallback, got WordPiece"):
        Tokenizer(_foreign(models.WordPiece(), trainer, decoders.WordPiece()))


def test_an_unknown_special_token_is_a_user_error():
    with pytest.raises(UserError, match="no added token"):
        TOKENIZER.special("<nothing>")


def test_training_from_the_command_line_writes_a_tokenizer(tmp_path, monkeypatch, capsys):
    data = tmp_path / "texts.jsonl"
    chat = {"conversations": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hi"}]}
    data.write_text("".join(json.dumps(record) + "\n" for record in [{"text": "法国", "n": 1}, chat, []]))
    argv = ["x", "--data", str(data), "--vocab_size", "280", "--out", str(tmp_path / "tok")]
    monkeypatch.setattr("sys.argv", argv)
    main()
    assert Tokenizer.load(tmp_path / "tok").vocab_size == 280
    assert "bytes per token on text that was not trained on" in capsys.readouterr().out
    written = {path.name: path.read_bytes() for path in (tmp_path / "tok").iterdir()}
    (tmp_path / ".tok.partial").mkdir()  # what a killed run left
    main()
    said = "note: of 3 records not used: 1 not a JSON object\nnote: keys not read: n\n"
    assert capsys.readouterr().out == f"{tmp_path}/tok: trained already, nothing to do\n{said}"
    shutil.rmtree(tmp_path / "tok")
    main()
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "tok").iterdir()}
    monkeypatch.setattr("sys.argv", [*argv, "--isolate_han", "false"])
    with pytest.raises(UserError, match="exists already, trained with other isolate_han; choose another"):
        main()
    for copies, message in (("0", "expected 1 to 8, got 0"), ("2", "trained with other prompt_copies")):
        monkeypatch.setattr("sys.argv", [*argv, "--prompt_copies", copies])
        with pytest.raises((UserError, SystemExit)) as caught:
            main()
        assert message in f"{caught.value} {capsys.readouterr().err}"
    request = json.loads(written["request.json"])
    assert request.pop("prompt_copies") == 1 and request.pop("file_endings") == [".jsonl"]
    (tmp_path / "tok" / "request.json").write_text(json.dumps(request))  # as it was before there were any
    monkeypatch.setattr("sys.argv", argv)
    main()
    assert "trained already" in capsys.readouterr().out
    shutil.copy(data, renamed := data.with_suffix(".txt"))
    monkeypatch.setattr("sys.argv", ["x", "--data", str(renamed), *argv[3:]])
    main()
    assert "trained already" in capsys.readouterr().out, "that one did not tell how its data was read"
    (tmp_path / "tok" / "request.json").write_bytes(written["request.json"])
    with pytest.raises(UserError, match="trained with other file_endings; choose another, or"):
        main()
    renamed.unlink()
    monkeypatch.setattr("sys.argv", [*argv, "--prompt_copies", "2", "--overwrite"])
    main()
    assert Tokenizer.load(tmp_path / "tok").prompt_copies == 2
    monkeypatch.setattr("sys.argv", [*argv, "--overwrite"])
    main()
    assert [path.name for path in sorted(Path(tmp_path).iterdir())] == ["texts.jsonl", "tok"]
    (tmp_path / "tok" / "model.safetensors").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        main()


def test_a_sample_is_drawn_from_all_over_the_data_and_never_what_is_held_out(tmp_path):
    files = []
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": f"{name}{n} 法国" * 9}) + "\n" for n in range(2000)))
        files.append(str(path))
    all_texts = {json.loads(line)["text"] for path in files for line in open(path)}  # noqa: SIM115
    sizes = sum(Path(path).stat().st_size for path in files)
    wanted = (TokenizerSettings(tuple(files), "tok", max_bytes=size) for size in (10**9, sizes // 10))
    whole, part = map(Sample, wanted)
    everything, some = set(whole.texts()), list(part.texts())
    held_out = set(whole.held_out["other"] if "other" in whole.held_out else whole.held_out["zh"])
    assert everything | held_out == all_texts and not everything & held_out
    assert 40 <= len(held_out) <= 130  # 80 expected, standard deviation 9
    assert some == list(part.texts()) and set(some) < everything
    assert sum(len(text.encode()) for text in some) <= sizes // 10 + 200
    assert {text[0] for text in some} == {"a", "b"}


def test_what_is_not_held_out_as_enough_is_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.tokenizer_sample.HELD_OUT_CHARACTERS", 50)
    texts = [f"said {n}" for n in range(2000)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    sample = Sample(TokenizerSettings((str(tmp_path / "a.txt"),), "tok"))
    trained = list(sample.texts())
    [held_out] = sample.held_out.values()
    assert 5 <= len(held_out) <= 8 and sorted(trained + held_out) == sorted(texts)


@pytest.mark.parametrize(
    "record, unread",
    [
        ({"text": "{}", "messages": [{"role": "user", "content": "hi"}]}, "messages"),
        ({"prompt": "{}", "chosen": "a", "rejected": "b"}, "rejected"),
        ({"question": "{}", "answers": ["a", "b"], "\x1b": "c"}, r"\x1b, answers after the first"),
    ],
)
def test_what_a_tokenizer_is_not_trained_on_is_told(tmp_path, monkeypatch, capsys, record, unread):
    lines = [json.dumps(record).replace("{}", f"said {n}") for n in range(300)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    flags = ["--vocab_size", "280", "--max_bytes", "2000", "--out", str(tmp_path / "tok")]
    monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path / "a.jsonl"), *flags])
    main()
    said = capsys.readouterr().out.splitlines()
    assert f"note: keys not read: {unread}" in said
    [drawn] = [line.removeprefix("note: ") for line in said if "drawn by --max_bytes: " in line]
    assert drawn.endswith(" bytes of text") and 100 < int(drawn.split()[3].replace(",", "")) < 1500


def test_what_a_sample_does_not_reach_is_told(tmp_path, monkeypatch, capsys):
    files = [tmp_path / f"{name}.jsonl.gz" for name in "abc"]
    for file in files:  # holds far more than its size lets expect
        file.write_bytes(
            gzip.compress(b"".join(b'{"text": "%d %s"}\n' % (n, b"ha" * 99) for n in range(500)))
        )
    flags = ["--vocab_size", "280", "--max_bytes", "150000", "--out", str(tmp_path / "tok")]
    monkeypatch.setattr("sys.argv", ["x", "--data", *map(str, files), *flags])
    main()
    told = f"not read, as --max_bytes 150,000 was reached: the end of {files[1]} and 1 files after it\n"
    assert told in capsys.readouterr().out


def test_languages_are_told_by_their_characters():
    assert language_of("法国的首都是 Paris") == "zh"
    assert language_of("The capital of France") == "en"
    assert language_of("Это столица") == "other"


def test_the_report_compares_sizes_and_directories(tmp_path, monkeypatch, capsys):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"法国的首都是巴黎 {n}"}) + "\n" for n in range(400)))
    TOKENIZER.save(tmp_path / "other")
    paths = ["--data", str(data), "--out", str(tmp_path / "tok"), "--vocab_size", "300"]
    monkeypatch.setattr("sys.argv", ["x", *paths, "--compare", "280", str(tmp_path / "other")])
    main()
    table = capsys.readouterr().out.splitlines()[1:]
    main()
    assert capsys.readouterr().out.splitlines()[1:] == table, "a finished one is still compared"
    assert "zh" in table[1] and [line.split()[1] for line in table[2:]] == ["300", "340", "280"]


def test_the_report_has_no_column_for_a_few_bytes_of_a_language(capsys):
    texts = {"en": ["The capital of France is Paris. " * 40], "other": ["Это"], "zh": ["法国的首都是巴黎"]}
    print_report({"tok": TOKENIZER}, texts)
    title, header, line = capsys.readouterr().out.splitlines()
    assert title == "bytes per token on text that was not trained on; too little of other (6 B)"
    assert header.split() == ["tokenizer", "tokens", "en", "(1,280", "B)", "zh", "(24", "B)"]
    assert len(line.split()) == 4


def test_the_report_says_where_no_text_was_held_out(capsys):
    print_report({"tok": TOKENIZER}, {})
    told = "bytes per token on text that was not trained on: too few different documents to hold one out\n"
    assert capsys.readouterr().out == told


def test_kinds_of_tokenizers_that_are_not_ours_have_the_names_their_users_know(tmp_path):
    spaces = pre_tokenizers.Metaspace()
    kinds = [
        (models.BPE(byte_fallback=True), None, "BPE of characters"),
        (models.BPE(), spaces, "BPE of characters"),
        (models.BPE(), None, "BPE of characters"),
        (models.Unigram(), spaces, "SentencePiece Unigram (T5, XLM-R)"),
        (models.WordPiece(), None, "WordPiece (BERT)"),
    ]
    for model, rules, name in kinds:
        backend = tokenizers.Tokenizer(model)
        if rules:
            backend.pre_tokenizer = rules
        backend.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(UserError) as error:
            Tokenizer.load(tmp_path)
        assert str(error.value) == f"expected BPE, byte-level or with byte fallback, got {name}"


def test_rules_that_panic_on_a_text_are_one_line(tmp_path, capfd):
    """A panic of the library is no `Exception`, and is printed before anyone can catch it."""
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend = _foreign(models.BPE(), trainer, decoders.ByteLevel())
    split, rest = pre_tokenizers.Split(Regex("(a*)*$"), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="the rules of the tokenizer fail .*; use another tokenizer"):
        Tokenizer.load(tmp_path)
    assert capfd.readouterr().err == ""


def test_rules_that_panic_while_they_are_read_are_one_line(tmp_path, capfd):
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the rules of the tokenizer fail .*; use another tokenizer"):
        Tokenizer.load(tmp_path)
    assert capfd.readouterr().err == ""


def test_an_id_that_no_embedding_could_hold_is_refused(tmp_path):
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"]["zz"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected ids below 16777216, got a token 4294967295"):
        Tokenizer.load(tmp_path)


def test_rules_that_panic_on_an_empty_text_are_one_line(tmp_path, capfd):
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Prepend", "prepend": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the rules of the tokenizer fail .*; use another tokenizer"):
        Tokenizer.load(tmp_path)
    assert capfd.readouterr().err == ""


def test_templates_whose_names_are_no_texts_are_none(tmp_path):
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    named = [{"name": [], "template": "x"}, {"name": {}}, {"name": "default", "template": 5}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert Tokenizer.load(tmp_path).form == ChatForm()


@pytest.mark.parametrize(
    "name, content", [("tokenizer_config.json", "["), ("special_tokens_map.json", "[" * 3000)]
)
def test_a_damaged_file_beside_the_tokenizer_is_a_user_error(tmp_path, name, content):
    TOKENIZER.save(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is not valid JSON"):
        Tokenizer.load(tmp_path)
