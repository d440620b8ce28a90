"""Saved conversations: training data as they are, and restored id by id."""

import json

import pytest

from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from eval.chat import ChatSession, TextSampling
from eval.transcript import is_replaced, load_transcript, save_transcript
from model.errors import UserError
from tests.serving import saying_model, served_model, small_tokenizer

TEXT = "世国的来Lima😀"


def say(session: ChatSession, text: str) -> str:
    return "".join(session.ask(text))


def talk(served=None, **sampling) -> ChatSession:
    session = ChatSession(
        served or saying_model(TEXT, "prefix"), TextSampling(**sampling), system="Be brief."
    )
    for question in ("Capital\nof Peru?", "它的货币呢？😀"):
        say(session, question)
    return session


def test_a_saved_conversation_is_training_data_as_it_is(tmp_path):
    save_transcript(tmp_path / "talk.jsonl", [talk()])
    small_tokenizer().save(tmp_path / "tok")
    paths = (str(tmp_path / "talk.jsonl"),), str(tmp_path / "tok"), str(tmp_path / "sft")
    write_store(PreparationSettings("sft", *paths))
    store = TokenStore(tmp_path / "sft")
    assert len(store) == 1
    targets = store[0].ids[store[0].targets].tolist()
    assert small_tokenizer().decode(targets) == f"{TEXT}<|im_end|>" * 2


def test_a_restored_conversation_goes_on_as_if_it_had_never_stopped(tmp_path):
    served = served_model("segment")  # random answers: no text encodes to these ids
    session = talk(served, max_new_tokens=8, temperature=1.0)
    while not all(turn.answer.strip() for turn in session.turns):
        session = talk(served, max_new_tokens=8, temperature=1.0, seed=session.sampling.seed + 1)
    save_transcript(tmp_path / "talk.jsonl", [session])
    restored = ChatSession(served, session.sampling)
    load_transcript(tmp_path / "talk.jsonl", [restored])
    assert (restored.system, restored.turns) == (session.system, session.turns)
    assert say(restored, "And?") == say(session, "And?")


def test_what_a_chat_does_not_take_up_is_told(tmp_path):
    path, session = tmp_path / "talk.jsonl", talk()
    save_transcript(path, [session])
    assert load_transcript(path, [session]) == []
    [record] = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    record["conversations"][1]["name"] = "Ann"
    path.write_text(json.dumps({"version": "1", "data": [record | {"context": "Peru is a country."}]}))
    assert load_transcript(path, [session]) == ["context", "conversations.name", "version"]


def test_marks_of_passages_that_a_chat_does_not_take_up_are_told(tmp_path):
    parts = [{"type": "passage", "text": "Peru. "}, {"type": "text", "text": "Capital?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Lima"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": messages}))
    session = talk()
    assert load_transcript(tmp_path / "talk.jsonl", [session]) == ["marks of passages"]
    assert session.turns[0].question == "Peru. Capital?"


def test_an_answer_whose_text_was_edited_is_encoded_anew(tmp_path):
    path = tmp_path / "talk.jsonl"
    save_transcript(path, [talk()])
    path.write_text(path.read_text(encoding="utf-8").replace(TEXT, "Quito", 1), encoding="utf-8")
    restored = talk()
    load_transcript(path, [restored])
    assert restored.turns[0].answer_ids == tuple(small_tokenizer().encode("Quito"))
    assert restored.turns[1].answer == TEXT


def test_a_stop_string_stays_out_of_the_text_but_not_of_the_ids(tmp_path):
    session = talk(stop_strings=("来L",))
    assert session.turns[0].answer == "世国的"
    assert small_tokenizer().decode(session.turns[0].answer_ids) == "世国的来Li"
    save_transcript(tmp_path / "talk.jsonl", [session])
    restored = talk()
    load_transcript(tmp_path / "talk.jsonl", [restored])
    assert restored.turns == session.turns


def test_blank_answers_are_left_out_and_counted(tmp_path):
    session = talk()
    session.change_sampling(max_new_tokens=0)
    say(session, "Silence?")
    assert save_transcript(tmp_path / "talk.jsonl", [session]) == 1
    assert len(json.loads((tmp_path / "talk.jsonl").read_text(encoding="utf-8"))["conversations"]) == 5


def test_a_thought_in_an_answer_comes_back_as_it_was_said(tmp_path):
    session, path = talk(), tmp_path / "talk.jsonl"
    save_transcript(path, [session])
    said = "<think>\nt\n</think>\n\nb"
    path.write_text(path.read_text(encoding="utf-8").replace(TEXT, json.dumps(said)[1:-1]), encoding="utf-8")
    load_transcript(path, [session])
    assert [turn.answer for turn in session.turns] == [said] * 2


def test_two_models_share_a_file_line_by_line(tmp_path):
    pair = [talk(), talk(saying_model("Lima", "causal"))]
    save_transcript(tmp_path / "talk.jsonl", pair)
    restored = [ChatSession(session.served, session.sampling) for session in pair]
    load_transcript(tmp_path / "talk.jsonl", restored)
    assert [session.turns for session in restored] == [session.turns for session in pair]
    with pytest.raises(UserError, match="2 conversations; expected 1"):
        load_transcript(tmp_path / "talk.jsonl", [talk()])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("x", "not JSON"),
        ('{"text": "T"}', "no chat format"),
        ('{"conversations": [{"role": "assistant", "content": "A"}]}', "in turn"),
        ('{"conversations": [{"role": "tool", "content": "A"}]}', "no answer"),
        ('{"conversations": ' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ('{"conversations": [], "answer_ids": [[' + "1" * 5000 + "]]}", "line 1"),
        ('{"conversations": [{"role": "user", "content": "\\ud800"}]}', "Unicode"),
        ('{"conversations": [{"role": "\\u001b[2J", "content": "A"}]}', "unknown role"),
        ("null", "not a JSON object"),
        (json.dumps({"conversations": "[" * 3000}), "nested too deeply"),
    ],
)
def test_what_is_no_conversation_is_one_line_and_changes_nothing(tmp_path, record, reason):
    path, session = tmp_path / "talk.jsonl", talk()
    before = list(session.turns)
    path.write_text(f"{record}\n")
    with pytest.raises(UserError, match=reason):
        load_transcript(path, [session])
    assert session.turns == before


@pytest.mark.parametrize(
    "ids",
    [
        "x",
        {},
        None,
        [],
        [[1]],
        [[1], "ab"],
        [[1], [True]],
        [[1], [1.5]],
        [[1], [-1]],
        [[1], [10**30]],
        [[[1]], []],
    ],
)
def test_ids_that_are_none_are_refused_and_change_nothing(tmp_path, ids):
    path, session = tmp_path / "talk.jsonl", talk()
    save_transcript(path, [session])
    before = list(session.turns)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"answer_ids": ids}))
    with pytest.raises(UserError, match="answer_ids are not .* without the key, texts are taken"):
        load_transcript(path, [session])
    assert session.turns == before


def test_only_a_transcript_is_ever_replaced(tmp_path):
    path, session = tmp_path / "talk.jsonl", talk()
    assert not is_replaced(path, [session])
    save_transcript(path, [session])
    say(session, "And?")
    assert not is_replaced(path, [session]), "it goes on from what lies there"
    session.undo()
    session.undo()
    assert is_replaced(path, [session])
    save_transcript(path, [session])
    assert len(json.loads(path.read_text(encoding="utf-8"))["answer_ids"]) == 1
    path.write_text('{"conversations": 5, "answer_ids": []}\n')
    assert is_replaced(path, [session])
    save_transcript(path, [session])
    record = json.loads(path.read_text(encoding="utf-8"))
    for more in ({"note": "precious"}, {"weight": 0}):
        path.write_text(json.dumps(record | more) + "\n")
        assert is_replaced(path, [session]) and load_transcript(path, [session]) == [*more]
    path.write_text('{"text": "precious"}\n')
    with pytest.raises(UserError, match="something else"):
        save_transcript(path, [session])
    assert "precious" in path.read_text()
    for name, reason in (("talk.txt", r"\.jsonl"), ("", r"\.jsonl"), ("a\0.jsonl", "the name of a file")):
        with pytest.raises(UserError, match=reason):
            save_transcript(name, [session])
    session.reset()
    with pytest.raises(UserError, match="nothing to save"):
        save_transcript(tmp_path / "new.jsonl", [session])
