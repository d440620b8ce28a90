"""A running server: answers of the model's own chat, one clear error, clients that leave."""

import contextlib
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from forked_commands import begin
from running_server import MASKS, client_of, post, running, save_models

from dataset.command_line import read
from eval.chat import ChatSession, RawSession
from eval.served_model import open_model
from eval.server import Written
from eval.server_settings import ServerSettings
from eval.serving import _listen, open_chats, serve
from eval.serving_settings import TextSampling
from model.errors import UserError

QUESTIONS = ("What is the capital of Peru?", "And its currency?", "法国的首都是哪里？")
SYSTEM = "Be brief 😀"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(models):
    with running(models, max_requests=40, batch_size=4, body_seconds=1.0) as address:
        yield address


@pytest.fixture
def client(address):
    return client_of(address)


@pytest.mark.parametrize("name", MASKS)
def test_every_turn_is_answered_as_the_models_own_chat_answers_it(client, models, name):
    session = ChatSession(open_model(models[MASKS.index(name)]), TextSampling(24), system=SYSTEM)
    messages = [{"role": "system", "content": SYSTEM}]
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        expected = "".join(session.ask(question))
        answer = client.chat.completions.create(model=name, messages=messages, max_tokens=24)
        [choice] = answer.choices
        assert choice.message.content == expected
        assert answer.usage.completion_tokens == session.last.tokens
        assert choice.finish_reason == session.last.finish_reason
        messages.append({"role": "assistant", "content": choice.message.content})
    reused = answer.usage.prompt_tokens_details.cached_tokens
    assert reused == session.last.reused_tokens > 0


def ask(client, name: str, question: str, **more) -> str:
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model=name, messages=messages, **more)
    return answer.choices[0].message.content


def streamed(client, name: str, question: str, **more) -> str:
    messages = [{"role": "user", "content": question}]
    stream = client.chat.completions.create(model=name, messages=messages, stream=True, **more)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_a_stream_says_what_the_whole_answer_says_and_ends_with_usage_and_done(address, client):
    body = {"model": "causal", "messages": [{"role": "user", "content": QUESTIONS[2]}], "max_tokens": 30}
    whole = post(address, body).json()
    lines = post(address, body | {"stream": True, "stream_options": {"include_usage": True}}).text.split(
        "\n\n"
    )
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    deltas = [event["choices"][0] for event in events[:-1]]
    assert deltas[0]["delta"]["role"] == "assistant" and len(deltas) > 3
    [expected] = whole["choices"]
    assert "".join(each["delta"].get("content", "") for each in deltas) == expected["message"]["content"]
    assert [each["finish_reason"] for each in deltas[-2:]] == [None, expected["finish_reason"]]
    assert events[-1]["choices"] == [] and {event["id"] for event in events} == {events[0]["id"]}
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [events[-1]["usage"][name] for name in counts] == [whole["usage"][name] for name in counts]


def test_answers_that_are_computed_together_are_those_that_each_has_alone(client):
    texts = [f"{question} {n}" * (1 + n % 3) for n, question in enumerate(QUESTIONS * 3)]
    asked = [(MASKS[n % 2], text, {"max_tokens": 5 + 3 * n}) for n, text in enumerate(texts)]
    alone = [ask(client, name, text, **more) for name, text, more in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda each: streamed(client, *each[:2], **each[2]), asked))
    assert together == alone and len(set(alone)) > 6


def test_texts_are_continued_as_the_models_own_session_does(client, models):
    session = RawSession(open_model(models[1]), TextSampling(12))
    texts = ["The capital of", "法国的首都"]
    expected = ["".join(session.ask(text)) for text in texts]
    for prompt in (texts, [[0, *session.served.tokenizer.encode(text)] for text in texts]):
        answer = client.completions.create(model="prefix", prompt=prompt, max_tokens=12)
        assert [choice.text for choice in answer.choices] == expected
    stream = client.completions.create(model="prefix", prompt=texts[0], max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[0]


def test_a_seed_gives_the_same_answers_again_and_others_for_each_of_n(client):
    def answers(**more) -> list[str]:
        messages = [{"role": "user", "content": QUESTIONS[0]}]
        drawn = client.chat.completions.create(
            model="causal", messages=messages, temperature=1.5, n=3, max_tokens=20, **more
        )
        assert [choice.index for choice in drawn.choices] == [0, 1, 2]
        return [choice.message.content for choice in drawn.choices]

    assert answers(seed=7) == answers(seed=7) != answers(seed=8)
    assert len(set(answers(seed=7))) == 3 and answers() != answers()


def test_log_probabilities_are_those_of_the_models_own_chat(client, models):
    session = ChatSession(open_model(models[0]), TextSampling(8, log_probabilities=True))
    list(session.ask(QUESTIONS[0]))
    asked = {"model": "causal", "messages": [{"role": "user", "content": QUESTIONS[0]}], "max_tokens": 8}
    answer = client.chat.completions.create(logprobs=True, top_logprobs=3, **asked).choices[0]
    scores = answer.logprobs.content
    assert [each.logprob for each in scores] == pytest.approx(
        session.last.completion.log_probabilities, abs=1e-5
    )
    token_bytes = session.served.tokenizer.token_bytes
    assert [bytes(each.bytes) for each in scores] == [*map(token_bytes, session.last.completion.ids)]
    for each in scores:  # greedy: what was taken is the most probable
        assert len(each.top_logprobs) == 3
        assert (each.token, each.logprob) == (each.top_logprobs[0].token, each.top_logprobs[0].logprob)


def test_a_stop_text_ends_an_answer_and_is_not_shown(client):
    whole = ask(client, "causal", QUESTIONS[1], max_tokens=30)
    stop = whole[4:6]
    stopped = ask(client, "causal", QUESTIONS[1], max_tokens=30, stop=[stop, "never said"])
    assert stopped == whole[: whole.index(stop)]
    assert streamed(client, "causal", QUESTIONS[1], max_tokens=30, stop=stop) == stopped


def test_another_mask_is_served_where_a_request_names_it(client, models):
    served = open_model(models[1], "causal", allow_mask_mismatch=True)
    expected = "".join(ChatSession(served, TextSampling(24)).ask(QUESTIONS[0]))
    other = ask(client, "prefix", QUESTIONS[0], max_tokens=24, extra_body={"prompt_mask": "causal"})
    assert other == expected != ask(client, "prefix", QUESTIONS[0], max_tokens=24)


MESSAGES = [{"role": "user", "content": "x"}]
REFUSED = [  # a body, the status, and what the error says
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"[]", 400, "object"),
    (b"\xff\xfe", 400, "JSON"),
    (b"[" * 100_000, 400, "JSON"),
    (b'{"messages": ' + b"9" * 5000 + b"}", 400, "out of range"),
    ({}, 400, "messages"),
    ({"messages": "x"}, 400, "messages"),
    ({"messages": []}, 400, "at the end"),
    ({"messages": ["x"]}, 400, "messages.0"),
    ({"messages": [{"role": "user"}]}, 400, "content"),
    ({"messages": [{"role": "judge", "content": "x"}]}, 400, "unknown role judge"),
    ({"messages": [*MESSAGES, {"role": "assistant", "content": "y"}]}, 400, "at the end"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "only text",
    ),
    ({"messages": [MESSAGES[0] | {"colour": "red"}]}, 400, "messages.colour"),
    ({"messages": [MESSAGES[0] | {"weight": 0}]}, 400, "messages.weight"),
    ({"messages": MESSAGES, "model": "gpt"}, 404, "causal, prefix"),
    ({"messages": MESSAGES, "temperature": "warm"}, 400, "temperature"),
    ({"messages": MESSAGES, "temperature": -1}, 400, "temperature"),
    ({"messages": MESSAGES, "seed": 10**400}, 400, "seed"),
    ({"messages": MESSAGES, "n": 99}, 400, "n: "),
    ({"messages": MESSAGES, "top_logprobs": 2}, 400, "without logprobs"),
    (
        {"messages": MESSAGES, "max_tokens": 2, "max_completion_tokens": 3},
        400,
        "the same as max_completion_tokens",
    ),
    ({"messages": MESSAGES, "stop": [""]}, 400, "stop"),
    ({"messages": MESSAGES, "max_tokens": 0}, 400, "max_tokens"),
    ({"messages": MESSAGES, "prompt_mask": "none"}, 400, "prompt_mask"),
    ({"messages": MESSAGES, "logit_bias": {"5": 1}}, 400, "logit_bias"),
    ({"messages": MESSAGES, "colour": "red"}, 400, "colour"),
    ({"messages": MESSAGES, "tool_choice": "required"}, 400, "tool_choice"),
    ({"messages": MESSAGES, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"messages": [{"role": "user", "content": "x" * 3000}]}, 400, "256"),
    (b'{"prompt": "a", "messages": [{"role": "user", "content": "x"}], "seed": 1, "seed": 2}', 400, "twice"),
    (b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + b"9" * 5000 + b"}", 400, "the body"),
    (b'{"messages": "' + b"x" * 2**21 + b'"}', 413, "1,048,576"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_body_that_cannot_be_answered_gets_one_clear_error(address, number):
    body, status, words = REFUSED[number]
    body = {"model": "causal"} | body if isinstance(body, dict) else body
    answer = post(address, body)
    error = answer.json()["error"]
    assert answer.status_code == status and words in error["message"], error
    assert len(error["message"]) < 400 and "\n" not in error["message"] and error["type"]


def test_no_answer_steers_the_terminal_in_which_it_is_shown():
    said = {"content": "a\x9b2J\u202e\u2028", "role": "assistant"}
    body = Written(said).body
    assert json.loads(body) == said and b"a\\u009b2J\\u202e\\u2028" in body


def test_no_part_of_an_answer_waits_until_the_one_before_it_has_arrived():
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_unknown_addresses_methods_and_kinds_of_bodies_are_errors_of_the_same_form(address):
    for answer, status in (
        (httpx.get(f"{address}/v2/models"), 404),
        (httpx.get(f"{address}/v1/models/gpt"), 404),
        (httpx.get(f"{address}/v1/chat/completions"), 405),
        (post(address, b"{}", **{"content-type": "text/plain"}), 415),
        (post(address, b"{}", host="evil.example"), 403),
        (post(address, {"model": "causal", "prompt": [5, -1]}, "/v1/completions"), 400),
    ):
        assert answer.status_code == status and answer.json()["error"]["message"]


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def is_soon(claim) -> bool:
    return any(claim() or time.sleep(0.05) for _ in range(200))


def is_idle(address: str) -> bool:
    return metric(address, "sightline_open") == metric(address, "sightline_rows") == 0


ENDLESS = {
    "model": "causal",
    "messages": MESSAGES,
    "max_tokens": 240,
    "seed": 1,
    "temperature": 100.0,
    "n": 4,
}


def test_answers_of_a_client_that_leaves_are_given_up(address):
    for more in ({"stream": True}, {}):
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/chat/completions", json=ENDLESS | more, timeout=0.2)
        assert is_soon(lambda: is_idle(address))


def test_who_comes_when_too_many_wait_is_told_to_come_again(address):
    busy = [socket_asking(address, ENDLESS | {"n": 16, "stream": True}) for _ in range(3)]
    assert is_soon(lambda: metric(address, "sightline_open") > 30)
    answer = post(address, ENDLESS | {"n": 16})
    assert answer.status_code == 429 and answer.headers["retry-after"]
    for each in busy:
        each.close()
    assert is_soon(lambda: is_idle(address))


def socket_asking(address: str, body: dict | bytes, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent, perhaps not all that it promises."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(f"{head}content-length: {length or len(text)}\r\n\r\n".encode() + text)
    return connection


def test_a_body_that_does_not_arrive_is_not_waited_for(address):
    with socket_asking(address, b'{"mess', length=100) as connection:
        assert b"408" in connection.recv(4096).splitlines()[0]
    socket_asking(address, b'{"mess', length=100).close()  # leaves in the middle of it
    assert is_soon(lambda: is_idle(address))


def sent(address: str, *parts: bytes) -> bytes:
    """All that a server says to a client that sends these bytes and nothing more."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.2)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (400, [b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 50_000]),  # not kept in memory
        (400, [b"\x16\x03\x01\x02\x00\x01\x00"]),  # a client that speaks TLS
        (408, []),
        (408, [b"GET /health HTTP/1.1\r\n", b"x: 1\r\n", b"x: 2\r\n"]),  # a part now and then
    ],
)
def test_what_never_becomes_a_request_gets_a_clear_error_and_is_not_waited_for(address, status, parts):
    head, body = sent(address, *parts).split(b"\r\n\r\n")
    assert int(head.split()[1]) == status and json.loads(body)["error"]["message"]


def test_a_second_head_on_a_connection_is_not_waited_for_either(address):
    whole = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    said = sent(address, whole, b"GET /health HT")
    assert said.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in said


def test_a_body_that_breaks_after_its_answer_ends_the_connection_without_a_word_in_the_log(address, caplog):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: b.example\r\ntransfer-encoding: chunked\r\n\r\n"
    said = sent(address, head, b"no size of a chunk\r\n")
    assert said.startswith(b"HTTP/1.1 4") and said.count(b"HTTP/1.1") == 1
    assert not [each for each in caplog.records if each.exc_info]


def test_a_key_and_other_origins_are_let_in_where_the_server_is_told_so(models, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    page = "http://page.example"
    with running(models[:1], key_file=str(tmp_path / "key"), allow_origins=(page,)) as address:
        body = {"messages": MESSAGES, "max_tokens": 1}
        answers = [post(address, body, **more) for more in ({}, {"authorization": "Bearer wrong"})]
        assert [answer.status_code for answer in answers] == [401, 401]
        assert httpx.get(f"{address}/v1/models").status_code == 401
        assert ask(client_of(address, "secret"), "causal", QUESTIONS[0], max_tokens=1)
        assert httpx.get(f"{address}/health", headers={"origin": page}).headers[ALLOWED] == page
        assert ALLOWED not in httpx.get(f"{address}/health", headers={"origin": "http://b.example"}).headers


ALLOWED = "access-control-allow-origin"


def test_the_command_ends_what_it_answers_and_then_itself_when_it_is_told_to(models, tmp_path):
    os.mkfifo(tmp_path / "told")
    words = ["scripts.serve", "--model", models[0], "--port", "0"]
    process = begin(words, [os.devnull, os.devnull, tmp_path / "told"])
    with open(tmp_path / "told") as lines:
        address = next(line for line in lines if line.startswith("answering")).split()[2].removesuffix("/v1")
        with socket_asking(address, ENDLESS | {"stream": True, "n": 1}) as connection:
            text = connection.recv(100)
            process.terminate()
            while part := connection.recv(65536):
                text += part
    process.join(30)
    assert b"data: [DONE]" in text and process.exitcode == 0


def test_an_address_of_ipv6_is_told_as_clients_want_it_and_a_key_may_have_any_letters(models, tmp_path):
    if not can_listen("::1"):
        pytest.skip("this machine has no IPv6")
    (tmp_path / "key").write_text("geheim-密", encoding="utf-8")
    with running(models[:1], host="::1", key_file=str(tmp_path / "key")) as address:
        said = {"authorization": "Bearer geheim-密".encode()}
        assert httpx.get(f"{address}/v1/models", headers=said).status_code == 200


def can_listen(host: str) -> bool:
    with contextlib.suppress(OSError), socket.create_server((host, 0), family=socket.AF_INET6):
        return True
    return False


def test_a_model_has_the_name_of_the_link_that_leads_to_it(models, tmp_path):
    links = [tmp_path / name for name in ("first", "second")]
    for link in links:
        link.symlink_to(models[0])
    chats = open_chats(ServerSettings(model=(f"{links[0]}/", str(links[1]))), str)
    assert [chat.name for chat in chats.values()] == ["first", "second"]


def test_a_server_says_what_chats_are_to_know_of_a_model(models, monkeypatch):
    served = replace(open_model(models[0]), trained_on="texts")
    monkeypatch.setattr("eval.serving.open_model", lambda *_, **__: served)
    told = []
    open_chats(ServerSettings(model=models[:1]), told.append)
    fault = "was never fine-tuned on chats; /v1/completions continues text"
    assert told[1:] == [f"note: {models[0]} {fault}"]


def test_what_cannot_be_served_is_refused_by_name(models, address, tmp_path):
    (tmp_path / "key").touch()
    for words, name in (
        (["--model", models[0], models[0]], "two are called causal"),
        (["--model", f"{models[0]}\x1b[2J"], "a folder whose name can be shown"),
        (["--model", models[0], "--host", "a..b"], "cannot listen there"),
        (["--model", models[0], "--port", "70000"], "--port"),
        (["--model", models[0], "--port", address.rpartition(":")[2]], "cannot listen there"),
        (["--model", models[0], "--batch_size", "0"], "--batch_size"),
        (["--model", models[0], "--key_file", str(tmp_path / "key")], "--key_file"),
        ([], "--model"),
    ):
        with pytest.raises(UserError, match=name):
            serve(read(ServerSettings, [*words, *(() if "--port" in words else ("--port", "0"))]), str)
