"""Measure the server under load beside the generator alone: python -m scripts.bench load …"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from itertools import repeat
from operator import eq
from pathlib import Path
from statistics import median
from string import ascii_lowercase
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from model.config import Weights
from model.errors import UserError
from scripts.bench.decode import Speed, Workload, measure_engine
from scripts.bench.measuring import Figures, TurnSettings, bench, refuse_below, spread

if TYPE_CHECKING:
    from scripts.bench.engines import Engine, Tell

NAME = "served"
HEADER = ("first ms", "tokens/s", "of decode", "least-most", "as alone")


@dataclass(frozen=True, kw_only=True)
class LoadBenchSettings(TurnSettings):
    """What `scripts.bench load` is asked for."""

    preset: str = "small"
    """shape of the model, whose weights are random; small is that of 30M parameters"""
    dtype: Weights = "float32"
    """form of the weights"""
    clients: int = 16
    """that ask at once, each for an answer as a stream; as many rows are decoded together"""
    context: int = 64
    """tokens of their prompts"""
    new_tokens: int = 128
    """tokens of their answers"""

    def __post_init__(self) -> None:
        refuse_below(self, clients=1, context=1, new_tokens=2, rounds=1)


def main() -> None:
    """Measure what clients get beside what the generator makes by itself."""
    bench(LoadBenchSettings, "Measure streams of the server beside the generator alone.", _find)


def _find(settings: LoadBenchSettings, work: Path) -> Figures:
    import torch

    task, model = _task(settings), work / NAME
    _save_model(settings, model)
    decode, form = _decoding(settings, model)
    with _serving(settings, model) as clients:
        alone = [clients.ask(prompt, settings.new_tokens) for prompt in task.prompts]
        turns = []
        for number in range(settings.rounds + 1):
            print(f"round {number} of {settings.rounds} …", file=sys.stderr)
            turns.append((measure_engine(decode, task), measure_engine(clients, task)))
    del turns[0]  # which allocates what the others find
    ratio = spread(served.tokens_per_second / direct.tokens_per_second for direct, served in turns)
    equal = sum(map(eq, clients.answers, alone))
    rows = [(name, _cells([turn[n] for turn in turns])) for n, name in enumerate(("decode", "server"))]
    rows[1][1].extend((f"{ratio[0]:.0%}", f"{ratio[1]:.0%}-{ratio[2]:.0%}", f"{equal} of {len(alone)}"))
    machine = {"threads": torch.get_num_threads(), "ours": form}
    above = "  ".join(f"{name} {value}" for name, value in machine.items())
    record = {"machine": machine, "turns": [[each._asdict() for each in turn] for turn in turns]}
    return Figures(record | {"ratio": ratio, "as_alone": equal}, HEADER, rows, before=[above])


def _task(settings: LoadBenchSettings) -> Workload:
    from dataset.tokenizer import SMALLEST_VOCAB

    noise, words = random.Random(0), range(SMALLEST_VOCAB, settings.vocab_size)
    prompts = tuple(tuple(noise.choices(words, k=settings.context)) for _ in range(settings.clients))
    return Workload(prompts, (settings.new_tokens,) * settings.clients, settings.clients)


def _save_model(settings: LoadBenchSettings, folder: Path) -> None:
    """Write a random model that says words alone: marks, which end answers, and single bytes are no text."""
    import torch

    from dataset.tokenizer import SMALLEST_VOCAB, train_tokenizer
    from model.checkpoint import save_checkpoint
    from model.config import from_preset
    from model.transformer import LanguageModel

    torch.manual_seed(0)
    longest = settings.context + settings.new_tokens
    shape = {"vocab_size": settings.vocab_size, "max_position_embeddings": longest}
    noise = random.Random(0)
    words = ("".join(noise.choices(ascii_lowercase, k=8)) for _ in range(settings.vocab_size))
    train_tokenizer(words, settings.vocab_size).save(folder)
    model = LanguageModel(from_preset(settings.preset, **shape))
    model.model.embed_tokens.weight.data[:SMALLEST_VOCAB] = 0
    save_checkpoint(folder, model)


def _decoding(settings: LoadBenchSettings, folder: Path) -> "tuple[Engine, str]":
    """Return the generator that the server has inside, and how it computes."""
    from eval.served_model import open_model
    from scripts.bench.engines import answering

    served = open_model(str(folder)).in_form(settings.dtype, False, False)
    return answering(served.generator()), served.speed


@contextmanager
def _serving(settings: LoadBenchSettings, folder: Path) -> "Iterator[Clients]":
    words = [sys.executable, "-m", "scripts.serve", "--model", str(folder), "--dtype", settings.dtype]
    words += ["--port", "0", "--batch_size", str(settings.clients), "--prefix_cache_mib", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            lines = iter(server.stderr.readline, "")
            said = next((line for line in lines if line.startswith("answering")), None)
            if said is None:
                raise UserError("the server did not start; try the same with python -m scripts.serve")
            yield Clients(urlsplit(said.split()[2]).port, settings.clients)
        finally:
            server.terminate()


class Clients:
    """Clients of a server on this machine, who ask at the same time."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._pool = port, ThreadPoolExecutor(count)
        self.answers: list[str] = []
        """of the last time that all asked"""

    def __call__(self, task: Workload, tell: "Tell") -> None:
        """Answer a workload, as an engine of the bench does."""
        self.answers = list(self._pool.map(self.ask, task.prompts, task.lengths, repeat(tell)))

    def ask(self, prompt: Sequence[int], length: int, tell: "Tell" = id) -> str:
        """Return an answer; `tell` hears of its first token, and of its end."""
        body = {"model": NAME, "prompt": prompt, "max_tokens": length, "stream": True}
        connection, pieces = HTTPConnection("127.0.0.1", self._port), []
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                tell(not pieces)
                pieces.append(json.loads(line[6:])["choices"][0]["text"])
        tell(0)
        connection.close()
        return "".join(pieces)


def _cells(speeds: Sequence[Speed]) -> list[str]:
    first, rate = (
        median(each.first_seconds for each in speeds),
        median(each.tokens_per_second for each in speeds),
    )
    return [f"{first * 1000:,.0f}", f"{rate:,.0f}"]
