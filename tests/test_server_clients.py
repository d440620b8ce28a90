"""What clients of OpenAI's interface send, as recorded, and thoughts and tools on their way and back."""

import json

import pytest
from running_server import client_of, post, running, save_models
from serving import save_served, saying_model

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.messages import read_message
from eval.served_model import open_model

PERU = [{"content": "Be brief", "role": "system"}, {"content": "Capital of Peru?", "role": "user"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city.",
        "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"},
    },
}
CALLED = [
    {
        "content": None,
        "role": "assistant",
        "tool_calls": [
            {
                "type": "function",
                "id": "call_1",
                "function": {"name": "weather", "arguments": '{"city": "Lima"}'},
            }
        ],
    },
    {"content": "sun", "role": "tool", "tool_call_id": "call_1"},
]
SHORT = {"max_completion_tokens": 5}
USAGE = {"stream_options": {"include_usage": True}}
WHO = {"user": {"name": "Ada", "id": "1b2c", "email": "ada@example.org", "role": "user"}}
CHATS = {  # bodies of langchain-openai 1.7.4, and of Open WebUI 0.6 (its own `metadata` goes before it sends)
    "langchain invoke": {"stream": False, "messages": PERU},
    "langchain stream": {"stream": True, "messages": PERU},
    "langchain settings": {
        "stream": False,
        "messages": PERU,
        "logprobs": True,
        "max_completion_tokens": 9,
        "n": 2,
        "seed": 3,
        "temperature": 0.0,
    },
    "langchain tools": {"stream": False, "messages": PERU + CALLED, "tools": [WEATHER]},
    "open webui chat": {"stream": True, "messages": PERU} | USAGE,
    "open webui pipeline": {"stream": True, "messages": PERU, "temperature": 0.8, "top_p": 0.9} | WHO | USAGE,
    "open webui title": {"stream": False, "messages": PERU[1:], "max_completion_tokens": 1000},
    "openai parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
}
TEXT = {  # langchain-openai's OpenAI
    "prompt": ["The capital"],
    "frequency_penalty": 0,
    "logprobs": None,
    "max_tokens": 5,
    "n": 1,
    "presence_penalty": 0,
    "seed": None,
    "temperature": 0.7,
    "top_p": 1,
}
THOUGHT = "<think>Lima</think>sol"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [
        *save_models(folder),
        str(save_served(saying_model(THOUGHT, "prefix", has_marks=True), folder / "thinking")),
    ]


@pytest.fixture(scope="module")
def address(models):
    with running(models) as address:
        yield address


@pytest.mark.parametrize("name", CHATS)
def test_a_request_as_a_client_sends_it_is_answered(address, name):
    body = SHORT | CHATS[name] | {"model": "thinking"}
    answer = post(address, body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert answer.headers["content-type"].startswith("text/event-stream")
    else:
        assert len(answer.json()["choices"]) == body.get("n", 1)


def test_a_text_as_a_client_sends_it_is_continued(address):
    [choice] = post(address, TEXT | {"model": "causal", "seed": 0}, "/v1/completions").json()["choices"]
    assert choice["text"] and choice["finish_reason"] in ("stop", "length")


def test_models_are_listed_as_clients_expect(address):
    listed = client_of(address).models.list().data
    assert [(each.id, each.object, each.prompt_mask) for each in listed] == [
        ("causal", "model", "causal"),
        ("prefix", "model", "prefix"),
        ("thinking", "model", "prefix"),
    ]


def test_a_thought_comes_back_apart_from_what_is_said(address):
    client, asked = client_of(address), {"model": "thinking", "messages": PERU, "max_tokens": 50}
    message = client.chat.completions.create(**asked).choices[0].message
    assert (message.reasoning_content, message.content) == ("Lima", "sol")
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Lima"
    assert "".join(delta.content or "" for delta in deltas) == "sol"


def test_tools_calls_and_thoughts_stand_in_the_prompt_as_training_writes_them(address, models):
    thoughtful = CALLED[0] | {"reasoning_content": "I must look."}
    messages = [*PERU, thoughtful, CALLED[1]]
    system = Message("system", "Be brief", tools=(json.dumps(WEATHER, ensure_ascii=False),))
    expected = [system, *map(read_message, messages[1:])]
    assert expected[2].thought and expected[2].tool_calls
    tokens = len(render(expected, open_model(models[2]).tokenizer, True))
    body = {"model": "thinking", "messages": messages, "tools": [WEATHER], "max_tokens": 1}
    usage = client_of(address).chat.completions.create(**body).usage
    without = client_of(address).chat.completions.create(**body, tool_choice="none").usage
    assert usage.prompt_tokens == tokens > without.prompt_tokens
