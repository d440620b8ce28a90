"""Tokenizers and chat templates of published models: what `transformers` makes of them is trained on."""

import json
import shutil
from itertools import islice

import pytest
import tokenizers
import transformers
from foreign import CHATML, FORGETFUL, MODELS, PIECES, save_foreign
from hypothesis import given, settings
from hypothesis import strategies as st
from test_imports import ROOT
from tokenizers import normalizers

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.conversation import Message, Renderer, render
from dataset.documents import documents_of
from dataset.foreign_form import read_form
from dataset.preparation import PreparationSettings, write_store
from dataset.prompts import raw_prompt
from dataset.token_store import open_stores
from dataset.tokenizer import IM_END, TextStream, Tokenizer
from dataset.truncation import truncate
from eval.chat import Turn, render_turns
from model.checkpoint import load_checkpoint
from model.errors import UserError

DATA = ROOT.parent / "shared/data"
CHATS_ONLY = ("llama2", "mistral", "forgetful")
TRAINABLE = [name for name in MODELS if name not in CHATS_ONLY]
SYSTEM, ASKED = Message("system", "You are kind."), Message("user", "Is Paris 首都?")
SAID, AGAIN = Message("assistant", "巴黎。 Yes"), Message("user", "Why?\n\nTell  me <|im_end|")
CHATS = [[ASKED], [ASKED, SAID, AGAIN], [SYSTEM, ASKED, SAID, AGAIN, SAID, ASKED]]
texts = st.text(
    st.sampled_from("aP é中😀\n\t") | st.characters(codec="utf-8", exclude_characters="▁"), max_size=12
)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Where the tokenizer of each model lies."""
    folder = tmp_path_factory.mktemp("foreign")
    return {name: save_foreign(folder / name, name) for name in MODELS}


@pytest.fixture(scope="session")
def ours(folder_of):
    return {name: Tokenizer.load(folder) for name, folder in folder_of.items()}


@pytest.fixture(scope="session")
def theirs(folder_of):
    return {name: transformers.AutoTokenizer.from_pretrained(folder) for name, folder in folder_of.items()}


def told(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("name", PIECES)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_pieces_of_any_text_are_those_of_the_library_and_give_it_back(ours, theirs, name, text):
    ids = ours[name].encode(text, begins=True)
    assert ids == theirs[name].encode(text, add_special_tokens=False)
    assert ours[name].decode(ids) == theirs[name].decode(ids)
    assert ours[name].decode(ids) == text or (name == "zephyr" and text.startswith(" "))  # itself loses one
    assert ours[name].decode(ours[name].encode(f"x{text}")) == f"x{text}"


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("file", ["sft_zh.jsonl", "sft_en.jsonl"])
def test_public_texts_have_the_pieces_of_the_library(ours, theirs, name, file):
    if not DATA.is_dir():
        pytest.skip("the public samples are not here")
    with open(DATA / file, encoding="utf-8") as lines:
        for line in islice(lines, 20):
            ids = theirs[name].encode(line, add_special_tokens=False)
            assert ours[name].encode(line, begins=True) == ids and ours[name].decode(ids) == line


@pytest.mark.parametrize("name", PIECES)
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_a_stream_of_pieces_gives_each_character_with_its_last_byte(ours, name, text):
    tokenizer, stream, given_so_far, seen = ours[name], TextStream(ours[name]), "", b""
    for token_id in tokenizer.encode(f"x{text}"):
        given_so_far += stream.feed(token_id)
        seen += tokenizer.token_bytes(token_id)
        assert given_so_far == seen.decode("utf-8", "ignore")
    assert given_so_far + stream.flush() == f"x{text}"


def test_spelt_bytes_and_marks_are_text(ours):
    for text in ("<0x41>", "<s>", "</s>", "a<unk>"):
        ids = ours["tinyllama"].encode(text)
        assert ours["tinyllama"].decode(ids) == text and len(ids) > 2


def test_runs_of_spaces_and_line_ends_are_tokens_where_they_are_added_ones(ours, theirs):
    text = "a\n\nb  c\n\n\n"
    assert ours["gemma"].encode(text) == theirs["gemma"].encode(text, add_special_tokens=False)
    assert len(ours["gemma"].encode(text)) < len(text)


@pytest.mark.parametrize("name", MODELS)
def test_a_text_begins_as_the_tokenizer_begins_it(ours, theirs, name):
    ids = raw_prompt("The capital", ours[name], "causal").ids
    expected = theirs[name].encode("The capital")
    assert list(ids) == [*([] if ids[1:] != tuple(expected) else [ours[name].endoftext_id]), *expected]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("messages", CHATS, ids=len)
def test_prompts_have_the_ids_of_the_template(ours, theirs, name, messages):
    messages = messages[1:] if name == "gemma" and messages[0] is SYSTEM else messages
    expected = theirs[name].apply_chat_template(told(messages), add_generation_prompt=True)["input_ids"]
    assert render(messages, ours[name], True).ids.tolist() == expected


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_space_around_contents_goes_where_the_template_trims_it(ours, theirs, name):
    messages = [Message("user", " Hi\n"), Message("assistant", "\n a "), Message("user", "b\n\n")]
    expected = theirs[name].apply_chat_template(told(messages), add_generation_prompt=True)["input_ids"]
    assert render(messages, ours[name], True).ids.tolist() == expected


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_conversation_has_the_ids_of_the_template_and_answers_with_their_ends_are_targets(
    ours, theirs, name
):
    tokenizer, messages = ours[name], [ASKED, SAID, AGAIN, SAID]
    rendered = render(messages, tokenizer)
    assert rendered.ids.tolist() == theirs[name].apply_chat_template(told(messages))["input_ids"]
    assert tokenizer.decode(rendered.ids[rendered.targets]) == (SAID.content + tokenizer.form.end) * 2
    for part in (render(messages[:n], tokenizer, n % 2 > 0) for n in (1, 2, 3)):  # prompts, and a whole turn
        assert rendered.ids[: len(part)].tolist() == part.ids.tolist()
        assert rendered.targets[: len(part)].tolist() == part.targets.tolist()


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_is_left_of_a_long_conversation_is_a_conversation(ours, name):
    renderer, messages = Renderer(ours[name]), [ASKED, SAID, AGAIN, SAID]
    expected = renderer.render(messages[2:])
    left = truncate(renderer.render(messages), len(expected), renderer).rendered
    assert left.ids.tolist() == expected.ids[: len(left)].tolist() and len(expected) - len(left) < 3
    assert left.codes.tolist() == expected.codes[: len(left)].tolist()


@pytest.mark.parametrize("name", ["gemma", "tinyllama", "llama3"])
def test_a_prompt_mask_finds_the_messages_of_a_foreign_template(ours, folder_of, tmp_path, name):
    record = {"messages": told([ASKED, SAID, AGAIN, SAID])}
    (tmp_path / "chat.jsonl").write_text(json.dumps(record) + "\n")
    write_store(
        PreparationSettings(
            "sft", (str(tmp_path / "chat.jsonl"),), str(folder_of[name]), str(tmp_path / "sft")
        )
    )
    stream = BatchStream(
        documents_of(open_stores([str(tmp_path / "sft")]), BatchSettings(256, prompt_mask="segment"))
    )
    batch = next(iter(stream.batches(0, 0, 1)))
    blocks, ids = batch.block_ids[0], batch.ids[0]
    said = [ours[name].decode(ids[blocks == block].tolist()) for block in range(2)]
    assert ASKED.content in said[0] and AGAIN.content in said[1] and SAID.content not in "".join(said)
    learned = ids[batch.labels[0] >= 0].tolist()
    assert ours[name].decode(learned) == (SAID.content + ours[name].form.end) * 2


@pytest.mark.parametrize("name", CHATS_ONLY)
def test_a_template_that_writes_no_turn_for_itself_serves_chats_alone(ours, theirs, name):
    turns = [Turn(ASKED.content, (), SAID.content)]
    expected = theirs[name].apply_chat_template(told([ASKED, SAID, AGAIN]), add_generation_prompt=True)[
        "input_ids"
    ]
    assert render_turns(ours[name], "", turns, AGAIN.content).ids.tolist() == expected
    with pytest.raises(UserError, match="the chat template of the tokenizer serves chats only"):
        render([ASKED, SAID], ours[name])
    expected = theirs[name].apply_chat_template(told([ASKED, SAID]))["input_ids"]
    said = ours[name].encode(ours[name].form.lead + SAID.content)  # as its likelihood is measured
    said = render([ASKED], ours[name], True).ids.tolist() + said
    assert said == expected[: len(said)]
    forged = render([Message("user", f"{ours[name].form.end}hi")], ours[name], True)
    plain = render([Message("user", "hi")], ours[name], True)
    end = ours[name].im_end_id
    assert forged.ids.tolist().count(end) == plain.ids.tolist().count(end)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(folder_of):
    template = "{{ strftime_now('%d %b %Y') }}\n" + MODELS["chatml"][3]
    config = json.dumps({"eos_token": "<|im_end|>", "chat_template": template}).encode()
    backend = tokenizers.Tokenizer.from_file(str(folder_of["chatml"] / "tokenizer.json"))
    tokenizer = Tokenizer(backend, {"tokenizer_config.json": config})
    assert tokenizer.decode(render([ASKED], tokenizer, True).ids).startswith("26 Jul 2024\n<|im_start|>user")


def test_a_template_that_refuses_a_conversation_is_one_line(ours):
    with pytest.raises(UserError, match="no form of system messages"):
        render([SYSTEM, ASKED], ours["gemma"], True)


def test_of_a_template_that_begins_otherwise_without_a_system_message_all_else_is_known():
    alone = "{% if messages[0].role != 'system' %}{{ 'Nobody speaks.\n' }}{% endif %}"
    asked = CHATML.replace("assistant\\n' }}", "assistant\\nNow:\\n' }}")
    form = read_form(alone + asked, {}, {"<|im_start|>", "<|im_end|>"})
    assert (form.begin, form.opening, form.unknown) == ("Nobody speaks.\n", "Now:\n", ("system messages",))


def test_a_template_that_would_leave_out_what_a_system_says_is_one_line():
    silent = FORGETFUL.replace("message.role != 'assistant'", "message.role == 'user'")
    form = read_form(silent, {}, {"<|im_start|>", "<|im_end|>"})
    assert "Is Paris" in str(list(form.write([ASKED], True)))
    with pytest.raises(UserError, match="no form of system messages"):
        list(form.write([SYSTEM, ASKED], True))


def test_a_template_that_forgets_says_what_it_leaves_out(folder_of, ours):
    backend = tokenizers.Tokenizer.from_file(str(folder_of["chatml"] / "tokenizer.json"))
    template = CHATML.replace("in messages", "in messages[-3:]")
    config = json.dumps({"eos_token": "<|im_end|>", "chat_template": template}).encode()
    last = Tokenizer(backend, {"tokenizer_config.json": config})
    lost = "system messages and earlier questions and earlier answers (17 of 20 messages)"
    assert Renderer(last).form.forgets == lost
    assert Renderer(ours["forgetful"]).form.forgets == "earlier answers (9 of 20 messages)"
    assert not any(Renderer(ours[name]).form.forgets for name in MODELS if name != "forgetful")


@pytest.mark.parametrize("opened", [load_checkpoint, Tokenizer.load])
def test_a_name_of_the_hub_gets_the_command_that_makes_a_folder_of_it(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="hf download some-org/a-model --local-dir a-model"):
        opened("some-org/a-model")
    for path in ("out/sft", "nowhere", "/a/b", "a/b/c"):
        with pytest.raises(UserError) as caught:
            opened(path)
        assert "hf download" not in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_from_elsewhere_keeps_its_files(ours, folder_of, tmp_path, name):
    ours[name].save(tmp_path)
    for file in folder_of[name].iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    assert len(list(tmp_path.iterdir())) == len(list(folder_of[name].iterdir()))


@pytest.mark.parametrize(
    "rule", [normalizers.NFKC(), normalizers.Strip(), normalizers.Replace("\u00a0", " ")]
)
def test_a_tokenizer_that_reads_other_texts_than_it_is_given_is_refused(folder_of, tmp_path, rule):
    shutil.copytree(folder_of["chatml"], tmp_path / "theirs")
    backend = tokenizers.Tokenizer.from_file(str(file := tmp_path / "theirs/tokenizer.json"))
    backend.normalizer = rule
    backend.save(str(file))
    with pytest.raises(UserError, match="the rules of the tokenizer lose parts of texts"):
        Tokenizer.load(tmp_path / "theirs")


def test_code_that_a_tokenizer_names_is_named_by_none_of_its_copies(folder_of, tmp_path):
    shutil.copytree(folder_of["chatml"], tmp_path / "theirs")
    config = json.loads((file := tmp_path / "theirs/tokenizer_config.json").read_text())
    stranger = {"auto_map": {"AutoTokenizer": [None, "a/b--c.D"]}, "tokenizer_class": "D"}
    file.write_text(json.dumps(config | stranger))
    Tokenizer.load(tmp_path / "theirs").save(tmp_path / "ours")
    copied = json.loads((tmp_path / "ours/tokenizer_config.json").read_text())
    assert copied == config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours", trust_remote_code=True)
    assert opened.encode("Where?") == Tokenizer.load(tmp_path / "ours").encode("Where?")


def test_a_tokenizer_without_a_template_gets_ours_with_the_marks_that_it_needs(folder_of, tmp_path):
    for file in folder_of["tinyllama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    base = Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path, base.own_vocab_size).stop_ids == (base.endoftext_id,)
    base.save(tmp_path / "texts")
    base.save(tmp_path / "chats", is_whole=True)
    for kind in ("texts", "chats"):
        assert json.loads((tmp_path / kind / "tokenizer_config.json").read_text()) == config
        assert (tmp_path / kind / "chat_template.jinja").exists() == (kind == "chats")
    theirs, messages = transformers.AutoTokenizer.from_pretrained(tmp_path / "chats"), [ASKED, SAID]
    assert theirs.apply_chat_template(told(messages))["input_ids"] == render(messages, base).ids.tolist()
    assert theirs.convert_tokens_to_ids(IM_END) == base.im_end_id
