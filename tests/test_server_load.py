"""A server under load and under attack: nothing is left of clients that leave, no body is too strange."""

import contextlib
import json
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import psutil
import pytest
import torch
from running_server import post, running, save_models
from serving import served_model
from test_server import is_idle, is_soon, metric

from dataset.prompts import raw_prompt
from eval.answer_text import AnswerText
from eval.answering import Job, Lane
from model.generator import Request
from model.kv_cache import KVCache
from model.sampling import Sampling
from tests.pages import ROOT

JUNK = (
    *(
        None,
        True,
        False,
        0,
        -1,
        10**30,
        1.5,
        -0.0,
        1e308,
        "",
        "x",
        "\x00",
        "😀" * 9,
        "\ud800".encode("utf-8", "replace").decode(),
    ),
    *([], [[]], {}, {"role": "user"}, [{"role": "user", "content": "x"}], [None], ["x", 1], "a" * 5000),
)
KEYS = (
    *(
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
    ),
    *(
        "stop",
        "n",
        "stream",
        "stream_options",
        "prompt_mask",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
    ),
    *("prompt", "logit_bias", "response_format", "user", "frequency_penalty", "\x00", "x" * 300),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


def body_of(number: int) -> bytes:
    """A body that is a little wrong, a pure function of its number."""
    chance = random.Random(number)
    message = {"role": "user", "content": "Where is Ada?"}
    body = {"model": "causal", "messages": [message], "max_tokens": 2}
    for _ in range(chance.randint(1, 3)):
        holder = chance.choice([body, message])
        holder[
            chance.choice(KEYS if holder is body else ("role", "content", "tool_calls", "weight", "name"))
        ] = chance.choice(JUNK)
    text = bytearray(json.dumps(body).encode())
    for _ in range(chance.choice([0, 0, 1, 3])):
        text[chance.randrange(len(text))] = chance.randrange(256)
    return bytes(text[: chance.choice([len(text), len(text), chance.randrange(len(text))])])


def attack(address: str, numbers: range) -> list[str]:
    """What went wrong with bodies: all but answers and clear errors."""
    faults = []
    with httpx.Client(base_url=address, timeout=60, headers={"content-type": "application/json"}) as client:
        for number in numbers:
            path = f"/v1/{random.Random(number).choice(['chat/completions', 'completions'])}"
            answer = client.post(path, content=body_of(number))
            if answer.status_code == 200:
                continue
            error = answer.json()["error"]
            is_clear = 10 < len(error["message"]) < 500 and "\n" not in error["message"]
            if answer.status_code not in (400, 404, 413) or not is_clear:
                faults.append(f"{number}: {answer.status_code} {error}")
    return faults


def leave_at_random(address: str, numbers: range) -> None:
    """Begin to read streams, several at a time, and leave most of them before they end."""

    def one(number: int) -> None:
        chance = random.Random(number)
        body = {"model": "causal", "messages": [{"role": "user", "content": f"Tell of {number}"}]}
        body |= {"max_tokens": 60, "stream": True, "temperature": 1.0, "seed": number}
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream,
        ):
            for count, _ in enumerate(stream.iter_raw()):
                if count >= chance.choice([0, 1, 5, 1000]):
                    return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, numbers))


def test_strange_bodies_get_answers_or_clear_errors_and_leavers_leave_nothing(models):
    with running(models) as address:
        assert attack(address, range(60)) == []
        leave_at_random(address, range(8))
        assert is_soon(lambda: is_idle(address))
        threads = {thread.name for thread in threading.enumerate()}
        leave_at_random(address, range(8, 24))
        assert is_soon(lambda: is_idle(address))
        assert {thread.name for thread in threading.enumerate()} == threads
        body = {"model": "causal", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert post(address, body).status_code == 200
    assert not any(thread.name in ("answering", "reading_0") for thread in threading.enumerate())


@pytest.mark.long
def test_sixty_four_clients_at_once_each_get_the_answer_that_they_get_alone(models):
    def said(number: int) -> str:
        body = {"model": "prefix", "messages": [{"role": "user", "content": f"Tell of {number}"}]}
        answer = post(address, body | {"max_tokens": 10 + number, "stream": True})
        events = [json.loads(each[6:]) for each in answer.text.split("\n\n") if each.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    with running(models) as address, ThreadPoolExecutor(64) as pool:
        alone = [said(number) for number in range(64)]
        assert list(pool.map(said, range(64))) == alone and len(set(alone)) > 32


@pytest.mark.long
def test_two_hundred_leavers_and_ten_thousand_strange_bodies_cost_no_memory_and_no_thread(models):
    words = [sys.executable, "-m", "scripts.serve", "--model", *models, "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = iter(server.stderr.readline, "")
            address = (
                next(line for line in lines if line.startswith("answering")).split()[2].removesuffix("/v1")
            )
            process, found = psutil.Process(server.pid), []
            for begin in (0, 200):
                leave_at_random(address, range(begin, begin + 200))
                assert is_soon(lambda: is_idle(address))
                found.append((process.num_threads(), process.memory_info().rss))
            assert found[1][0] == found[0][0] and found[1][1] < 1.05 * found[0][1], found
            assert attack(address, range(10_000)) == []
            assert metric(address, "sightline_rows") == 0
            assert process.num_threads() == found[0][0] and process.memory_info().rss < 1.05 * found[0][1]
        finally:
            server.terminate()
    assert server.returncode == 0


def test_a_step_that_fails_ends_its_answers_with_an_error_and_the_others_go_on():
    calls = []

    def step(tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        calls.append(len(tokens))
        if len(calls) == 3:
            raise RuntimeError("can't allocate memory: you tried to allocate 9 bytes")
        return served.model.step(tokens, cache)

    served = replace(served_model("prefix"), steps=step)
    lane, generator = Lane(served, 2, 2**20), served_model("prefix").generator()

    def job(text: str) -> Job:
        prompt = raw_prompt(text, served.tokenizer, "prefix")
        return Job(lane.generator.begin(Request(prompt, Sampling(6))), AnswerText(served.tokenizer))

    jobs = [job(text) for text in ("Peru", "Lima", "sol", "法国")]
    lane.waiting += jobs
    while lane.has_work:
        lane.step()
    assert [bool(each.error) for each in jobs] == [True, True, False, False]
    assert "out of memory" in jobs[0].error and lane.batch.cache is None
    for each in jobs[2:]:
        [alone] = generator.generate([Request(each.answer.prompt, Sampling(6))])
        assert each.answer.completion() == alone
