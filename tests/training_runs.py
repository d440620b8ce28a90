"""Tiny stores and models, and the trainers as tests call them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trainer.dpo
import trainer.pretrain
import trainer.sft
from dataset.preparation import PreparationSettings, write_store
from dataset.tokenizer import Tokenizer, train_tokenizer
from model.checkpoint import save_checkpoint
from model.config import from_preset
from model.transformer import LanguageModel
from trainer import loss_picture
from trainer.loop import Training

NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn"]
PLACES = ["garden", "kitchen", "tower", "harbour"]
SHORT = {"--max_seq_len": 48, "--batch_size": 4, "--schedule.warmup_steps": 2, "--log_every_steps": 1}
SHORT |= {"--samples": 0, "--dtype": "float32"}
SHAPE = {"--model.preset": "tiny", "--model.hidden_size": 32, "--model.intermediate_size": 48}


def sentences() -> list[str]:
    """Sentences of a small world, of different lengths."""
    return [
        f"{name} goes to the {place}{' again' * (n % 5)}." for name in NAMES for n, place in enumerate(PLACES)
    ]


def conversations() -> list[dict]:
    """Questions about the sentences, every other one with a second turn."""
    records = []
    for number, text in enumerate(sentences()):
        name, place = text.split()[0], text.rstrip(".").split()[4]
        turns = [(f"{text} Where is {name}?", f"In the {place}."), (f"Who is in the {place}?", name)]
        messages = [
            {"role": role, "content": content}
            for turn in turns[: 1 + number % 2]
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        records.append({"conversations": messages})
    return records


def preferences() -> list[dict]:
    """Questions about the sentences with the right place and a wrong one."""
    records = []
    for number, chat in enumerate(conversations()):
        *prompt, answer = chat["conversations"]
        wrong = f"In the {PLACES[(number + 1) % 4]}, {'so ' * (number % 3)}to say."
        records.append({"prompt": prompt, "chosen": [answer], "rejected": [answer | {"content": wrong}]})
    return records


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with tokenizer/, the stores pretrain/, sft/ and dpo/, and stores of other tokenizers.

    other/ are texts under one of other texts, twice/ conversations whose questions stand twice.
    """
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in sentences()))
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, conversations())))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, preferences())))
    train_tokenizer(sentences(), 290).save(folder / "tokenizer")
    train_tokenizer(sentences(), 280).save(folder / "other_tokenizer")
    train_tokenizer(sentences(), 290, prompt_copies=2).save(folder / "twice_tokenizer")
    for kind, source, tokenizer, name in [
        ("pretrain", "text.jsonl", "tokenizer", "pretrain"),
        ("sft", "chat.jsonl", "tokenizer", "sft"),
        ("preference", "pairs.jsonl", "tokenizer", "dpo"),
        ("pretrain", "text.jsonl", "other_tokenizer", "other"),
        ("sft", "chat.jsonl", "twice_tokenizer", "twice"),
    ]:
        write_store(
            PreparationSettings(kind, (str(folder / source),), str(folder / tokenizer), str(folder / name))
        )
    return folder


def line(defaults: dict[str, object], *flags: object) -> list[str]:
    """The words of a command line; flags replace defaults."""
    words = [word for name, value in defaults.items() if name not in flags for word in (name, value)]
    return [str(word) for word in (*words, *flags)]


@pytest.fixture
def run_trainer(monkeypatch):
    """Call a trainer's `main` with the words of a command line; its picture is drawn, and not written.

    That takes as long as a training of such a model; tests of pictures take the patch back.
    """
    monkeypatch.setattr(loss_picture, "save_picture", lambda figure, path: None)

    def call(name: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *words])
        getattr(trainer, name).main()

    return call


@pytest.fixture
def pretrain(run_trainer, data):
    """Pretrain on the texts: `pretrain(out, "--max_steps", 3)`."""

    def call(out: Path, *flags: object) -> None:
        run_trainer("pretrain", *line({"--data": data / "pretrain", "--out": out} | SHAPE | SHORT, *flags))

    return call


@pytest.fixture
def sft(run_trainer, data, init):
    """Fine-tune on the conversations, from the model of `init`."""

    def call(out: Path, *flags: object) -> None:
        run_trainer("sft", *line({"--data": data / "sft", "--init": init, "--out": out} | SHORT, *flags))

    return call


@pytest.fixture
def dpo(run_trainer, data, init):
    """Tune on the pairs, from the model of `init`, whose answers are far from either side of them."""

    def call(out: Path, *flags: object) -> None:
        places = {"--data": data / "dpo", "--init": init, "--out": out, "--optimizer.learning_rate": 1e-3}
        run_trainer("dpo", *line(places | SHORT | {"--max_seq_len": 320}, *flags))

    return call


@pytest.fixture(scope="session")
def init(data, tmp_path_factory) -> Path:
    """A fresh causal model."""
    return fresh(tmp_path_factory.mktemp("init"), data)


@pytest.fixture(scope="session")
def experts(data, tmp_path_factory) -> Path:
    """A fresh mixture of experts, whose scores differ."""
    shape = {"architecture": "qwen3_moe", "intermediate_size": 16, "initializer_range": 0.2}
    return fresh(tmp_path_factory.mktemp("experts"), data, **shape)


def fresh(folder: Path, data: Path, **shape) -> Path:
    """A folder with a fresh model for the stores."""
    tokenizer = Tokenizer.load(data / "tokenizer")
    torch.manual_seed(3)
    small = {"hidden_size": 32, "intermediate_size": 48} | shape
    model = LanguageModel(from_preset("tiny", vocab_size=tokenizer.vocab_size, **small))
    save_checkpoint(folder, model, tokenizer.stop_ids)
    tokenizer.save(folder)
    return folder


def after_step(monkeypatch, step: int, act) -> None:
    """Let `act` happen once, right after an optimizer step."""
    update = Training._update

    def updated(training, batch):
        gradient_norm = update(training, batch)
        if training.progress.step == step:
            monkeypatch.setattr(Training, "_update", update)
            act()
        return gradient_norm

    monkeypatch.setattr(Training, "_update", updated)


def metrics(out: Path) -> list[dict]:
    """The records of a run without what depends on the clock."""
    timed = ("tokens_per_second", "targets_per_second", "waiting_share", "seconds_left")
    timed += ("model_flop_utilisation", "memory_megabytes")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def assert_same_course(one: Path, two: Path, dtype: str = "float32") -> None:
    """Equal to rounding in every record, and in the weights at the end.

    Gradient norms show a wrong scale, which clipping and Adam hide. Adam's first steps are about as long as
    the learning rate whatever the gradient, so rounding to bfloat16 may turn a few of them round.
    """
    relative, absolute = {"float32": (1e-5, 1e-5), "bfloat16": (2e-2, 5e-3), "float16": (1e-2, 5e-3)}[dtype]
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first.pop("validation", None) == second.pop("validation", None)
        assert second == pytest.approx(first, rel=relative)
    weights = [load_file(out / "model.safetensors") for out in (one, two)]
    torch.testing.assert_close(*weights, rtol=0, atol=absolute)


def losses(out: Path) -> list[float]:
    """The training losses of a run."""
    return [record["loss"] for record in metrics(out) if "loss" in record]
