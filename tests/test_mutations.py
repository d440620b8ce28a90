"""Whatever is changed about the input of a command, it ends well or with one line, never with a traceback.

Files are changed as bytes and as JSON, flags get odd values; each mutation is a pure function of its number.
"""

import importlib
import json
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHAPE, conversations, preferences, sentences

from dataset.command_line import run
from dataset.printing import printable
from tests.serving import save_model, small_tokenizer

MOST_SECONDS = 20
FEW, MANY = 120, 10_000
ESCAPE = "a\x1b[31m\u202e\x9b"

TRAIN = "--max_steps 2 --schedule.warmup_steps 1 --max_seq_len 96 --batch_size 2 --sample_tokens 2"
FRESH = " ".join(f"{name} {value}" for name, value in SHAPE.items())

# what is called, its flags, and the files that are changed
COMMANDS = {
    "tokenizer": (
        "scripts.train_tokenizer",
        "--data texts.jsonl texts.txt --vocab_size 290 --out new",
        "texts.*",
    ),
    "trained": (
        "scripts.train_tokenizer",
        "--data texts.jsonl --vocab_size 290 --compare tok --out trained",
        "trained/* texts.jsonl tok/*",
    ),
    "import": (
        "scripts.import_pth",
        f"--weights weights.pth --tokenizer tok --out new {FRESH}",
        "weights.pth tok/*",
    ),
    "texts": (
        "scripts.prepare_data",
        "--kind pretrain --data texts.jsonl texts.txt --tokenizer tok --out new --num_workers 1",
        "texts.* tok/*",
    ),
    "chats": (
        "scripts.prepare_data",
        "--kind sft --data chats.jsonl --tokenizer tok --out new --num_workers 1 --validation_fraction 0.2",
        "chats.jsonl tok/*",
    ),
    "prepared": (
        "scripts.prepare_data",
        "--kind sft --data chats.jsonl --tokenizer tok --out sft --num_workers 1",
        "sft/*",
    ),
    "rows": (
        "scripts.show_batch",
        "--data sft --prompt_mask prefix --max_seq_len 64",
        "sft/* sft/tokenizer/*",
    ),
    "pretrain": ("trainer.pretrain", f"--data texts --out new {TRAIN} {FRESH}", "texts/* texts/tokenizer/*"),
    "recipe": ("trainer.pretrain", f"--config recipe.yaml --data texts --out new {FRESH}", "recipe.yaml"),
    "sft": ("trainer.sft", f"--init model --data sft --out new {TRAIN}", "model/* sft/*"),
    "resume": (
        "trainer.sft",
        f"--init model --data sft --out run {TRAIN} --validation val",
        "run/* run/checkpoints/*/* run/checkpoints/*/training/*",
    ),
    "pairs": (
        "scripts.prepare_data",
        "--kind preference --data pairs.jsonl --tokenizer tok --out new --num_workers 1",
        "pairs.jsonl tok/*",
    ),
    "dpo": ("trainer.dpo", f"--init model --data pairs --out new {TRAIN}", "model/* pairs/*"),
    "chat": ("scripts.chat", "--model model --prompt hello --max_new_tokens 4", "model/*"),
    "adapter": ("scripts.chat", "--model adapter --prompt hello --max_new_tokens 4", "adapter/*"),
    "evaluate": (
        "scripts.evaluate",
        "--model model --data questions.jsonl --loss_data sft --max_new_tokens 2 --out evaluation",
        "model/* questions.jsonl sft/* evaluation/*",
    ),
    "compare": ("scripts.compare", "--runs one two --out new", "one/* one/evaluation/*"),
    "export": ("scripts.export_hf", "--model model --out new", "model/*"),
    "gguf": ("scripts.export_gguf", "--model model --out new.gguf --quantize q8_0", "model/*"),
    "page": ("scripts.draw_masks", "--html new.html --model model --data talk.jsonl", "model/* talk.jsonl"),
}

ODD = (
    *(None, True, -1, 0, 1, 7, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**6, 10**12, 2**63, 10**30),
    *(
        "",
        "x",
        " ",
        "\x1b[2J\x07",
        "\u202e",
        "../..",
        "/dev/null",
        "\ud800",
        "nan",
        "causal",
        "9" * 30,
        "x" * 5000,
    ),
    *([], [[]], [None], {}, {"": None}, [1, "a"], list(range(2000))),
)
ODD_TEXTS = (
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 3000,
    "NaN",
    "-",
    "\x00",
    "{",
    "}",
    "\xff",
    "\r",
    "1e999",
    "\ufeff",
)
ODD_WORDS = (
    "-1",
    "0",
    "1e9",
    "nan",
    "",
    "x",
    "null",
    "[]",
    "{}",
    "9" * 400,
    "\x1b[31m",
    "../up",
    "true",
    "0.5",
    "/",
)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with a whole of everything that commands read."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences()))
        Path("texts.txt").write_text("\n\n".join(sentences()))
        Path("chats.jsonl").write_text("".join(json.dumps(each) + "\n" for each in conversations()))
        Path("talk.jsonl").write_text(json.dumps(conversations()[1]))
        Path("pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in preferences()))
        Path("questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions()))
        Path("recipe.yaml").write_text(
            "max_steps: 2\nmax_seq_len: 48\nbatch_size: 2\noptimizer:\n  name: muon\n  learning_rate: 0.01\n"
            "schedule: {name: cosine, warmup_steps: 1}\nsamples: 0\ncompile: never\ndtype: float32\n"
        )
        small_tokenizer().save("tok")
        make("scripts.train_tokenizer", "--data texts.jsonl --vocab_size 290 --out trained")
        stores = {"texts": ("pretrain", "texts"), "chats": ("sft", "sft"), "pairs": ("preference", "pairs")}
        for data, (kind, out) in stores.items():
            make("scripts.prepare_data", f"--kind {kind} --data {data}.jsonl --tokenizer tok --out {out}")
        shutil.copytree("sft", "val")
        save_model(Path("model"), "causal")
        make("trainer.sft", f"--init model --data sft --out run {TRAIN} --validation val --max_minutes 1e-9")
        make("trainer.sft", f"--init model --data sft --out adapter --lora.rank 2 {TRAIN}")
        shutil.rmtree("adapter/checkpoints")
        make("trainer.pretrain", f"--data texts --out weights --max_steps 1 {FRESH}")
        torch.save(load_file("weights/checkpoints/step-00000001/model.safetensors"), "weights.pth")
        shutil.rmtree("weights")
        evaluate = "--data questions.jsonl --loss_data sft --max_new_tokens 2 --out"
        for name in ("one", "two"):
            shutil.copytree("model", name)
            make("scripts.evaluate", f"--model {name} {evaluate} {name}/evaluation")
        make("scripts.evaluate", f"--model model {evaluate} evaluation")
    return folder


def questions() -> list[dict[str, Any]]:
    """A question of each kind, with a few more."""
    reading = {"context": "Ada is in the tower.", "question": "Where is Ada?", "answers": ["tower"]}
    choice = {"question": "Where?", "choices": ["tower", "garden"], "answer": 1}
    chat = {
        "conversations": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    }
    return [reading, choice, chat, reading | {"kind": "a", "language": "en", "split": "b"}]


def make(module: str, flags: str) -> None:
    """Run a command that has to work."""
    assert call(module, flags.split()) == 0, f"{module} {flags}"


def call(module: str, words: list[str]) -> int:
    """Run a command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        try:
            run(importlib.import_module(module).main)
        except SystemExit as end:
            return end.code
    return 0


def changed(content: bytes, chance: random.Random) -> bytes:
    """Return the content of a file with one thing changed."""
    if chance.random() < 0.6 and (text := changed_json(content, chance)) is not None:
        return text
    place, other = sorted(chance.choices(range(len(content) + 1), k=2))
    return chance.choice(
        [
            content[:place],
            content[:place] + content[other:],
            content[:other] + content[place:],
            content[:place] + chance.randbytes(chance.randint(1, 8)) + content[place:],
            content[:place] + chance.choice(ODD_TEXTS).encode("latin-1", "ignore") + content[other:],
            b"",
        ]
    )


def changed_json(content: bytes, chance: random.Random) -> bytes | None:
    """Return JSON, lines of it, or the header of safetensors with a value changed; None for other files."""
    head, tail = b"", b""
    if len(content) > 8 and (size := int.from_bytes(content[:8], "little")) < len(content) - 8:
        content, tail = content[8 : 8 + size], content[8 + size :]
        head = b"header"
    lines = content.split(b"\n") if content.count(b"\n{") else [content]
    number = chance.randrange(len(lines))
    try:
        value = json.loads(lines[number])
    except ValueError:
        return None
    lines[number] = json.dumps(replaced(value, chance), ensure_ascii=chance.random() < 0.5).encode(
        errors="replace"
    )
    content = b"\n".join(lines)
    return len(content).to_bytes(8, "little") + content + tail if head else content


def replaced(value: Any, chance: random.Random) -> Any:
    """Return a value with one of its parts replaced by an odd one, left out, or given another name."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key, copy = chance.choice(keys), value.copy()
    if chance.random() < 0.15:
        del copy[key]
    elif isinstance(copy, dict) and chance.random() < 0.05:
        copy[str(chance.choice(ODD))] = copy.pop(key)
    else:
        copy[key] = replaced(value[key], chance)
    return copy


def mutate(folder: Path, patterns: str, words: list[str], chance: random.Random) -> str:
    """Change a file of the folder or a flag among the words; return what was changed."""
    if chance.random() < 0.12:
        place = chance.choice([n for n, word in enumerate(words) if n and not word.startswith("--")])
        words[place] = chance.choice(ODD_WORDS)
        return f"{words[place - 1]} {words[place]!r}"
    files = sorted(file for pattern in patterns.split() for file in folder.glob(pattern) if file.is_file())
    file = chance.choice(files)
    if chance.random() < 0.05:
        file.unlink()
        return f"{file.name} removed"
    file.write_bytes(changed(file.read_bytes(), chance))
    return f"{file.relative_to(folder)}"


def times_of(module: str) -> int:
    """Return how often a command is tried beside the others: trainings and pictures take longest."""
    return 1 if module.startswith("trainer.") or module == "scripts.compare" else 4


def attempt(number: int, template: Path, folder: Path) -> str:
    """Run one mutation in a new folder; return what went wrong, "" where nothing did."""
    chance = random.Random(number)
    name = chance.choice([name for name, (module, *_) in COMMANDS.items() for _ in range(times_of(module))])
    module, flags, patterns = COMMANDS[name]
    shutil.copytree(template, folder)
    words = flags.split()
    what = f"{name}: {mutate(folder, patterns, words, chance)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if number % 4:  # matplotlib takes a second for a picture, most of what it takes to compare
            patch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **words: None)
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)  # of computing: the machine may have other work
        try:
            code = call(module, words)
        except BaseException:  # also what the alarm raises, and panics of libraries
            return f"{what}\n{traceback.format_exc(limit=-4)}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return "" if code in (0, 2) else f"{what}: exit code {code}"


def steering(printed: str) -> str:
    """Return the first line that would steer a terminal, "" where none does."""
    lines = (line for line in printed.split("\n") if printable(line, keep="\t") != line)
    return next((f"raw characters in {line!r}" for line in lines), "")


class LateError(BaseException):
    """A command took too long; nothing in it takes this for a mistake of the user's."""


def _late(*_: object) -> None:
    raise LateError(f"not done after {MOST_SECONDS} s")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_name_of_a_file_steers_the_terminal(template, tmp_path, monkeypatch, capfd, name):
    """Every path is one with an escape, and has to be printed as something else."""
    module, flags, _ = COMMANDS[name]
    shutil.copytree(template, tmp_path / ESCAPE)
    monkeypatch.chdir(tmp_path)
    words = flags.replace("--out evaluation", "--out new").split()
    is_path = [(Path(ESCAPE) / word).exists() or word == "new" for word in words]
    is_path = [yes and words[n - 1] != "--kind" for n, yes in enumerate(is_path)]
    words = [f"{ESCAPE}/{word}" if yes else word for word, yes in zip(words, is_path, strict=True)]
    assert call(module, words) == 0
    assert steering("".join(capfd.readouterr())) == ""


@pytest.mark.parametrize("share", range(10))
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_no_change_of_the_input_makes_a_traceback(template, tmp_path, capfd, share, count):
    former, faults = signal.signal(signal.SIGPROF, _late), []
    for number in range(share * count // 10, (share + 1) * count // 10):
        torch.manual_seed(number)
        fault = attempt(number, template, tmp_path / str(number))
        if fault := fault or steering("".join(capfd.readouterr())):
            faults.append(f"mutation {number}: {fault}")
        shutil.rmtree(tmp_path / str(number))
    signal.signal(signal.SIGPROF, former)
    assert not faults, f"{len(faults)} of {count // 10}\n" + "\n".join(faults[:20])


@pytest.mark.parametrize(
    ("name", "flag", "value", "said"),
    [
        ("export", "--out", "/", "--out / is the root of all folders"),
        ("rows", "--max_seq_len", "9" * 18, "max_seq_len: expected at most 1,048,576 tokens"),
        ("pretrain", "--batch_size", "9" * 400, "--batch_size: expected a number below 2^63, got more"),
        ("chats", "--validation_fraction", "9" * 400, "a value among the flags cannot be read"),
    ],
)
def test_a_value_beyond_all_bounds_is_told_in_one_line(template, monkeypatch, capfd, name, flag, value, said):
    module, flags, _ = COMMANDS[name]
    words = flags.split()
    words[words.index(flag) + 1] = value
    monkeypatch.chdir(template)
    assert call(module, words) == 2
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("key", ["records", "bytes", "lengths", "rejects", "marks", "sources", "request"])
@pytest.mark.parametrize("value", [None, "x", [1], {"": None}, -1])
def test_a_finished_preparation_names_a_damaged_manifest(template, tmp_path, monkeypatch, capfd, key, value):
    shutil.copytree(template, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    manifest = json.loads(Path("sft/manifest.json").read_text())
    Path("sft/manifest.json").write_text(json.dumps(manifest | {key: value}))
    module, flags, _ = COMMANDS["prepared"]
    assert call(module, flags.split()) == 2
    said = capfd.readouterr().err
    assert "sft/manifest.json is damaged" in said or "prepared with other" in said
