"""Count equal answers of all engines to the same questions: python -m scripts.bench agreement …"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dataset.command_line import parse
from dataset.printing import printable

if TYPE_CHECKING:
    from eval.questions import Question
    from eval.served_model import ServedModel
    from model.generator import Request


@dataclass(frozen=True, kw_only=True)
class AgreementSettings:
    """What `scripts.bench agreement` is asked for."""

    models: tuple[str, ...]
    """model directories, each of another name"""
    data: tuple[str, ...]
    """.jsonl files of questions, as scripts.evaluate takes them"""
    max_questions: int = 10
    """most questions of each file"""
    max_new_tokens: int = 48
    """most tokens of an answer"""


def main() -> None:
    """Print for each model how many greedy answers of other engines are those of our chat."""
    settings = parse(AgreementSettings, "Ask the engines of a model the same questions.")
    from eval.questions import load_questions
    from eval.tables import Table, as_markdown

    asked = load_questions(settings.data, max_questions=settings.max_questions).questions
    header, rows = ("", "mask", "questions", "right", "server", "transformers", "llama.cpp"), []
    with served_address(settings.models) as address:
        for model in settings.models:
            rows.append(
                (printable(Path(model).name), *agreement(model, asked, settings.max_new_tokens, address))
            )
    print(as_markdown(Table(header, rows)))


def agreement(model: str, asked: "Sequence[Question]", most: int, address: str | None) -> Iterator[str]:
    """Yield the cells of a model: its mask, the questions, right answers of our chat, and equal ones."""
    from dataset.conversation import render
    from dataset.prompts import prompt_of
    from eval.served_model import open_model
    from model.generator import Request
    from model.sampling import Sampling

    served, sampling = open_model(model, device="cpu"), Sampling(max_new_tokens=most)
    prompts = [prompt_of(render(q.messages, served.tokenizer, True), served.prompt_mask) for q in asked]
    requests = [Request(prompt, sampling) for prompt in prompts]
    ids = [done.ids for done in served.generator().generate(requests)]
    texts = [served.tokenizer.decode(answer, skip_special_tokens=True) for answer in ids]
    yield from (served.prompt_mask, str(len(asked)))
    yield str(sum(text.strip() in q.answers for text, q in zip(texts, asked, strict=True)))
    yield equal(texts, from_server(address, Path(model).name, asked, most) if address else None)
    yield equal(ids, in_transformers(model, served, requests))
    yield equal(ids, in_llama_cpp(model, requests) if find_spec("llama_cpp") else None)


def equal(ours: Sequence, theirs: Sequence | None) -> str:
    """Say how many answers are the same; "–" for an engine that is not installed."""
    return "–" if theirs is None else str(sum(a == b for a, b in zip(ours, theirs, strict=True)))


@contextmanager
def served_address(models: tuple[str, ...]) -> Iterator[str | None]:
    """Yield the address of a server of the models that runs meanwhile; None without a client to ask it."""
    if not find_spec("openai"):
        yield None
        return
    from eval.server_settings import ServerSettings
    from eval.serving import serve

    told, servers, is_told = [], [], threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        if line.startswith("answering at "):
            is_told.set()

    settings = ServerSettings(model=models, port=0, device="cpu")
    thread = threading.Thread(target=serve, args=(settings, tell, servers.append))
    thread.start()
    while not is_told.wait(0.1):
        if not thread.is_alive():
            raise RuntimeError("the server did not start; what it said stands above")
    try:
        yield told[-1].split()[2]
    finally:
        servers[0].should_exit = True
        thread.join()


def from_server(address: str, name: str, asked: "Sequence[Question]", most: int) -> list[str]:
    """Return what the server says to the client of OpenAI."""
    from openai import OpenAI

    client = OpenAI(base_url=address, api_key="none")
    ask = partial(client.chat.completions.create, model=name, max_tokens=most, temperature=0)
    chats = [[{"role": each.role, "content": each.content} for each in q.messages] for q in asked]
    return [ask(messages=chat).choices[0].message.content for chat in chats]


def in_transformers(
    model: str, served: "ServedModel", requests: "Sequence[Request]"
) -> list[tuple[int, ...]]:
    """Return the ids that transformers generates with what `export_hf` writes."""
    import torch
    from transformers import AutoModelForCausalLM

    from eval.engines.transformers_files import export

    with TemporaryDirectory() as folder:
        export(model, f"{folder}/exported", "transformers")
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/exported", trust_remote_code=True).eval()
        answers = []
        for request in requests:
            ids = torch.tensor([request.prompt.ids])
            most = request.sampling.max_new_tokens
            made = theirs.generate(ids, max_new_tokens=most, do_sample=False, pad_token_id=0)
            answer = made[0, ids.shape[1] :].tolist()
            answers.append(tuple(answer[:-1] if answer[-1] in served.stop_ids else answer))
    return answers


def in_llama_cpp(model: str, requests: "Sequence[Request]") -> list[tuple[int, ...]]:
    """Return the ids that llama.cpp gives of a file in 32 bits."""
    from eval.engines.gguf_file import write_gguf
    from eval.engines.llama_engine import open_gguf
    from eval.served_model import open_model

    with TemporaryDirectory() as folder:
        write_gguf(open_model(model, device="cpu"), f"{folder}/model.gguf")
        llama = open_gguf(f"{folder}/model.gguf")
        return [done.ids for done in llama.generator().generate(requests, batch_size=1)]
