"""A model as the server has it, without HTTP: which masks it takes, what it draws, how it fails."""

import asyncio

import pytest
from serving import served_model

from dataset.prompts import raw_prompt
from eval.answer_text import AnswerText
from eval.answering import Job
from eval.openai_answers import ChatReply, Choice, TextReply
from eval.openai_requests import LookAsked, RefusedError
from eval.served_chat import ServedChat
from eval.server import _Stream
from eval.server_settings import ServerSettings
from model.generator import Request
from tests.conftest import windowed


def chat_of(prompt_mask: str, **shape) -> ServedChat:
    return ServedChat("small", served_model(prompt_mask, **shape), ServerSettings(model=("small",)))


def asked(words: str, prompt_mask: str | None = None) -> LookAsked:
    return LookAsked(messages=[{"role": "user", "content": words}], prompt_mask=prompt_mask)


def test_masks_that_need_passages_are_offered_where_the_cache_holds_them():
    kept = ["causal", "prefix", "segment", "history"]
    window = windowed(None, 7)
    for prompt_mask, shape, masks in (
        ("causal", {}, [*kept, "sets", "isolated"]),
        ("causal", window, kept),
        ("sets", window, [*kept, "sets", "isolated"]),
    ):
        chat = chat_of(prompt_mask, **shape)
        assert chat.described()["prompt_masks"] == masks
        assert chat.mask_of(asked("x", "segment")) == "segment"
    with pytest.raises(RefusedError, match="prompt_mask: small cannot keep passages apart as sets does"):
        chat_of("prefix", **window).mask_of(asked("x", "sets"))


def test_a_conversation_that_is_longer_than_the_model_takes_is_not_drawn():
    chat = chat_of("causal", context=64, architecture="gpt2")
    assert len(chat.look(asked("xq" * 20))["tokens"]) > 40
    for conversation in (asked("xq" * 40), LookAsked(messages=[])):
        with pytest.raises(RefusedError, match="masks of 1 to 64 are drawn"):
            chat.look(conversation)


@pytest.mark.parametrize("kind", [ChatReply, TextReply])
def test_a_stream_says_of_an_answer_that_failed_no_reason_for_its_end(kind):
    served = served_model("causal")
    prompt = raw_prompt("Peru", served.tokenizer, "causal")
    job = Job(served.generator().begin(Request(prompt)), AnswerText(served.tokenizer))
    reply = kind("small", "causal", served.tokenizer, [Choice(0, job)])
    assert all(event["choices"][0]["finish_reason"] is None for event in reply.events(False))
    job.answer.finish_reason = "cancelled"
    job.end("out of memory")
    assert not [*reply.events(False)] and reply.is_finished


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_stream_that_nobody_reads_is_given_up(version, monkeypatch):
    monkeypatch.setattr("eval.server.SEND_SECONDS", 0.01)
    ended = []

    async def events():
        while True:
            yield "data: {}\n\n"

    async def wait_for_ever(*message):
        await asyncio.Event().wait()

    stream = _Stream(events(), lambda: ended.append(True))
    asyncio.run(stream({"type": "http", "asgi": {"spec_version": version}}, wait_for_ever, wait_for_ever))
    assert ended == [True]
