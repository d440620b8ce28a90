"""Which answers are equal, and what of an answer counts."""

import pytest

from eval.matching import f1, final_answer, is_exact_match, normalise


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris.", "paris"),
        ("  the   Sol !", "The sol"),
        ("巴黎。", "巴黎"),
        ("ＡＢＣ", "abc"),
        ("１２", "12"),
        ("Straße", "STRASSE"),
        ("e\u0301", "é"),
        ("?", "?"),
        ("1,234", "1234"),
        ("1，234，567.5 kg", "1234567.5 kg"),
        ("$1,000!", "$1000"),
        ("“Peru’s” … ", '"Peru\'s"'),
        ("ｶﾞ", "ガ"),
        ("ﬁne", "fine"),
    ],
)
def test_form_does_not_count(text, answer):
    assert is_exact_match(text, ["something else", answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("10%", "10"),
        ("Paris, France", "Paris"),
        ("", "A"),
        ("-1", "1"),
        ("10²", "102"),
        ("H₂O", "H2O"),
        ("1½", "11/2"),
        ("①", "1"),
        ("m²", "㎡"),
        ("1,2", "12"),
        ("1,2345", "12345"),
        ("12,34,567", "1234567"),
        ("0,123", "123"),
    ],
)
def test_substance_counts(text, answer):
    assert not is_exact_match(text, [answer])
    assert normalise(text) != normalise(answer)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Lima", "Lima"),
        ("<think>\nPeru … Lima?\n</think>\n\nLima", "\n\nLima"),
        ("thought that the prompt began</think>7", "7"),
        ("<think>a</think>b</think>7", "7"),
        ("<think>\n\n</think>\n\n", "\n\n"),
        ("<think>\nThree and four", None),
        ("<think>a</think>b<think>c", None),
        ("1000 + 234 = 1,234\n#### 1,234", "1,234"),
        ("<think>\n#### 3\n</think>\n#### 4 ", "4"),
        ("#### heading\ntext", "#### heading\ntext"),
        ("##### 5", "##### 5"),
    ],
)
def test_what_counts_is_said_after_the_thought_and_behind_the_mark_of_a_result(text, said):
    assert final_answer(text) == said


def test_a_thought_is_no_part_of_the_compared_answer_and_an_open_one_is_none():
    assert is_exact_match("<think>\nThree and four are seven.\n</think>\n\n7", ["7"])
    assert not is_exact_match("<think>\n7", ["7", "<think>\n7", ""])


@pytest.mark.parametrize(
    ("text", "answers", "share"),
    [
        ("The old town.", ["old town"], 1),
        ("in the old town", ["old town hall"], 2 / 3),  # 2 of 3 said, 2 of 3 wanted
        ("town town", ["town"], 2 / 3),  # counted as often as both have it
        ("Lima", ["Paris", "Lima, Peru"], 2 / 3),
        ("在北京、上海", ["北京"], 4 / 7),
        ("GPT模型", ["GPT模型"], 1),
        ("GPT模型", ["gpt"], 1 / 2),
        ("Lima", ["Paris"], 0),
        ("", ["Paris"], 0),
        ("the", ["a"], 1),
        ("<think>Paris", ["Paris"], 0),
        ("<think>Lima</think>Paris", ["Paris"], 1),
    ],
)
def test_f1_is_the_share_of_words_and_chinese_characters_that_are_right(text, answers, share):
    assert f1(text, answers) == pytest.approx(share)
