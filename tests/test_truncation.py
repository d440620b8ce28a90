import json
import re
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.conversation import Message, Renderer, render
from dataset.tokenizer import Tokenizer, train_tokenizer
from dataset.truncation import truncate

TOKENIZER = train_tokenizer(["a\nb"], 300)  # nearly every byte is a token, "…" is three
RENDERER = Renderer(TOKENIZER)
MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>(?:\n|$)", re.DOTALL)
WORDS = "abcdefghijklmnopqrstuvwxyz"


def parsed(rendered):
    """The messages that tokens spell."""
    return [(role, content) for role, content in MESSAGE.findall(TOKENIZER.decode(rendered.ids))]


def short(messages, limit):
    """What is left of messages, contents alone, and the answers lost: too long, and cut out of a context."""
    rendered, *lost = truncate(render(messages, TOKENIZER), limit, RENDERER)
    assert rendered is None or len(rendered) <= limit
    return rendered and [content for _, content in parsed(rendered)], *lost


def length(*messages):
    """Tokens of messages whose last is an answer, without the newline after it."""
    return len(render(messages, TOKENIZER)) - 1


def user(content):
    return Message("user", content)


def answer(content, **changes):
    return Message("assistant", content, **changes)


CHAT = [Message("system", "kp"), user("ab"), answer("cd"), user("efg"), answer("h")]
CALL = [user("Where?"), answer("", tool_calls=("{}",)), Message("tool", "sunny"), answer("It is sunny.")]


def test_the_last_newline_goes_first_then_the_oldest_round():
    assert short(CHAT, length(*CHAT)) == (["kp", "ab", "cd", "efg", "h"], 0, 0)
    last_round = length(CHAT[0], *CHAT[3:])
    for limit in (length(*CHAT) - 1, last_round):
        assert short(CHAT, limit) == (["kp", "efg", "h"], 0, 0)
    assert short(CHAT, last_round - 1) == (None, 2, 0)  # nothing of "efg" would be left beside a mark


def test_a_prompt_that_stands_twice_is_never_cut():
    twice = Renderer(train_tokenizer(["a\nb"], 300, prompt_copies=2))
    whole, last = (twice.render(messages) for messages in (CHAT, [CHAT[0], *CHAT[3:]]))
    kept = truncate(whole, len(last) - 1, twice)
    assert [content for _, content in parsed(kept.rendered)] == ["kp", "efg\nefg", "h"]
    long = twice.render([user("a" * 20 + " Lima " + "b" * 20), answer("Lima")])
    assert truncate(long, len(long) - 5, twice) == (None, 1, 0)


def test_the_text_of_the_last_prompt_is_cut_at_its_beginning_but_headers_stay():
    messages = [CHAT[0], user(WORDS), answer("!")]
    assert short(messages, length(*messages) - 10) == (["kp", "…" + WORDS[13:], "!"], 0, 0)


@pytest.mark.parametrize("parting", ["\n\n", "\n", " "])
def test_a_question_stays_on_either_side_of_a_text_and_the_part_around_the_answer_with_it(parting):
    text, question = "x " * 60 + "It was Ada who won. " + "y " * 60 + "z.", "Who won? Say a name."
    for parts in ((text, question), (question, text)):
        messages = [user(parting.join(parts)), answer("Ada")]
        (prompt, said), *lost = short(messages, 90)
        assert lost == [0, 0] and said == "Ada" and prompt.count("…") == 2
        kept = question if parting != " " else question.split(". ")[0].split("? ")[parts[0] == text]
        assert kept in prompt and "x It was Ada who won. y" in prompt


def test_a_window_holds_as_many_places_of_the_answer_as_fit_and_prefers_whole_words():
    text = "Art " + "x " * 50 + "part part party " + "x " * 50 + "art, art" + " x" * 50
    for said, around in (("art", "x art, art x"), ("par", "x part part party x"), ("Art", "Art x")):
        (prompt, _), *_ = short([user(text), answer(said)], 50)
        assert around in prompt


def test_an_answer_that_cannot_stay_in_its_context_is_dropped_and_counted_apart():
    said = "the whole of a long sentence"
    messages = [user("x" * 40 + said + "y" * 40 + "\n\nWhat?"), answer(said)]
    need = length(user("……" + said + "\n\nWhat?"), answer(said))
    assert short(messages, need) == ([f"…{said}…\n\nWhat?", said], 0, 0)
    assert short(messages, need - 1) == (None, 0, 1)
    assert short(messages, length(answer(said))) == (None, 1, 0)
    assert short(CHAT + messages, need + 6) == (["kp", "ab", "cd", "efg", "h"], 0, 1)


def test_an_answer_whose_text_stood_in_a_round_that_went_is_dropped_or_stays_without_loss():
    reading = [user(f"{'x ' * 30}Ada won in Rome.\n\nWho?"), answer("Ada"), user("Where?"), answer("Rome")]
    limit = length(*reading[:2])
    assert short(reading, limit)[0][1:] == ["Ada"] and short(reading, limit)[1:] == (0, 1)
    more = [*reading, user("y " * 30), answer("Thanks.")]
    rendered, *lost = truncate(render(more, TOKENIZER), length(*more[2:]), RENDERER)
    assert [content for _, content in parsed(rendered)] == ["Where?", "Rome", "y " * 30, "Thanks."]
    assert lost == [0, 1]
    quiet = [more[2], replace(more[3], is_trained=False), *more[4:]]
    assert rendered.codes.tolist() == render(quiet, TOKENIZER).codes[:-1].tolist()


def test_a_text_in_the_system_message_always_stays_and_chance_loses_nothing():
    told = [Message("system", "Ada won."), user("x" * 40), answer("b"), user("Who won?"), answer("Ada")]
    assert short(told, length(told[0], *told[3:])) == (["Ada won.", "Who won?", "Ada"], 0, 0)
    by_chance = [
        user("x" * 40 + "d party"),
        answer("b"),
        user("Say"),
        answer("d"),
        user("Say"),
        answer("art"),
    ]
    assert short(by_chance, length(*by_chance[2:])) == (["Say", "d", "Say", "art"], 0, 0)


def test_what_follows_a_thought_is_looked_for():
    messages = [user("x" * 60 + " Ada " + "y" * 60), answer("Ada", thought="Who was it?")]
    assert " Ada " in short(messages, 80)[0][0]


def test_what_a_tool_says_stays_with_the_question_that_led_to_it():
    messages = [user("x" * 50), answer("y"), *CALL]
    assert short(messages, length(*CALL))[0] == [content for _, content in parsed(render(CALL, TOKENIZER))]
    long = [*CALL[:2], Message("tool", "rain\n" * 30 + "sunny" + "\nrain" * 30), answer("sunny")]
    contents, *lost = short(long, length(*CALL) + 20)
    assert contents[0] == "Where?" and "…" in contents[2] and "sunny" in contents[2] and lost == [0, 0]


def test_an_answer_that_fits_nowhere_leaves_the_ones_before_it_that_carry_loss():
    messages = [
        user("ab"),
        answer("cd"),
        user("ef"),
        answer("gh", is_trained=False),
        user("x"),
        answer(WORDS),
    ]
    assert short(messages, length(*messages[:4])) == (["ab", "cd"], 1, 0)


def test_a_mark_of_the_beginning_stays_where_a_template_has_one(tmp_path):
    TOKENIZER.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = Tokenizer.load(tmp_path)
    messages = [user(WORDS), answer("no"), user("x " * 30 + "yes\n\nSo?"), answer("yes")]
    for cut in (0, 30):
        whole = render(messages, tokenizer)
        last_round = render(messages[2:], tokenizer)
        left = truncate(whole, len(last_round) - cut, Renderer(tokenizer)).rendered
        if not cut:
            assert left.ids.tolist() == last_round.ids.tolist()
            assert left.codes.tolist() == last_round.codes.tolist()
        assert re.fullmatch(
            r"<\|endoftext\|>\[(…)?.*x yes\n\nSo\?\]yes<\|im_end\|>", tokenizer.decode(left.ids)
        )


texts = st.text(st.sampled_from("ab .?\n是水。？é👍🏽"), min_size=1, max_size=40).filter(str.strip)


@st.composite
def conversations(draw):
    """Rounds of prompts and answers, many of which are parts of a prompt."""
    messages = draw(st.just([]) | st.builds(lambda text: [Message("system", text[:6])], texts))
    for number in range(draw(st.integers(1, 4))):
        prompts = draw(st.lists(texts, min_size=1, max_size=2))
        roles = ["user" if number == 0 else draw(st.sampled_from(("user", "tool"))), "tool"]
        messages += map(Message, roles, prompts)
        source = draw(st.sampled_from(prompts))
        begin = draw(st.integers(0, len(source) - 1))
        said = draw(st.just(source[begin : begin + 5]) | texts)
        messages.append(answer(said, is_trained=draw(st.sampled_from((True, True, False)))))
    return messages


def is_cut(left, whole):
    """Whether pieces of a text stand in order with marks where something went."""
    pieces = [re.escape(piece) for piece in left.split("…")]
    return left == whole or (len(pieces) > 1 and re.fullmatch(".*".join(pieces), whole, re.DOTALL))


def is_left_of(kept, whole):
    """Whether messages are others of which prompts were cut, none of them where the answer to it stood."""
    prompts, before = [], ""
    for new, old in zip(kept, whole, strict=True):
        if new.role == "user" and before == "assistant":
            prompts = []
        before = new.role
        if new.role != old.role or new.is_trained > old.is_trained:
            return False
        if new.role == "assistant":
            said = new.content.strip()
            lost = said and any(said in o for _, o in prompts) and not any(said in n for n, _ in prompts)
            if new.content != old.content or (new.is_trained and lost):
                return False
        else:
            prompts.append((new.content, old.content))
            if not is_cut(new.content, old.content):
                return False
    return True


@settings(max_examples=150, deadline=None)
@given(conversations(), st.integers(16, 150))
def test_what_is_left_is_a_rendering_that_teaches_nothing_invented_and_the_rest_is_counted(messages, limit):
    rendered, *lost = truncate(render(messages, TOKENIZER), limit, RENDERER)
    if rendered is None:
        assert sum(lost) == sum(message.is_trained for message in messages if message.role == "assistant")
        return
    assert len(rendered) <= limit and "\ufffd" not in TOKENIZER.decode(rendered.ids)
    runs = [
        (target, trained)
        for (target, trained), _ in groupby(zip(rendered.targets, rendered.trained, strict=True))
    ]
    flags = iter([bool(trained) for target, trained in runs if target])
    kept = [
        Message(role, content, is_trained=next(flags) if role == "assistant" else True)
        for role, content in parsed(rendered)
    ]
    squeezed = [[code for code, _ in groupby(r.codes.tolist())] for r in (rendered, render(kept, TOKENIZER))]
    assert squeezed[0] == squeezed[1][:-1]  # but for the newline after the last answer

    has_system = messages[0].role == "system"
    assert kept[:has_system] == messages[:has_system]
    kept, whole = kept[has_system:], messages[has_system:]
    places = range(len(whole) - len(kept) + 1)
    assert kept[0].role == "user" and any(is_left_of(kept, whole[n : n + len(kept)]) for n in places)
