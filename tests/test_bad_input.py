"""What a user can get wrong: one clear line on stderr, exit code 2, and no file changed.

All commands run as processes of their own, forks of one that has imported the slow libraries already.
"""

import json
from pathlib import Path

import pytest
from forked_commands import call
from safetensors.torch import load_file, save_file

from dataset.preparation import PreparationSettings, write_store
from tests.serving import save_model, small_tokenizer

# command, flags, what the line must say; every name of a file stands in the folder that `files` fills
CASES = {
    "missing file": (
        "scripts.prepare_data",
        "--kind sft --data nowhere.jsonl --tokenizer tok --out new",
        ["nowhere.jsonl"],
    ),
    "empty file": (
        "scripts.prepare_data",
        "--kind sft --data empty.jsonl --tokenizer tok --out new",
        ["empty.jsonl"],
    ),
    "broken line": (
        "scripts.prepare_data",
        "--kind sft --data broken.jsonl --tokenizer tok --max_reject_fraction 0 --out new",
        ["broken.jsonl", "2", "not JSON", "max_reject_fraction"],
    ),
    "missing tokenizer": (
        "scripts.prepare_data",
        "--kind sft --data chats.jsonl --tokenizer no --out new",
        ["no"],
    ),
    "out in use": (
        "scripts.prepare_data",
        "--kind sft --data chats.jsonl --tokenizer tok --out model",
        ["model"],
    ),
    "no text to learn from": (
        "scripts.train_tokenizer",
        "--data nowhere.txt --vocab_size 300 --out new",
        ["nowhere.txt"],
    ),
    "tiny vocabulary": (
        "scripts.train_tokenizer",
        "--data chats.jsonl --vocab_size 5 --out new",
        ["vocab_size", "5"],
    ),
    "unknown flag": (
        "trainer.sft",
        "--init model --data sft --out new --max_stepz 3",
        ["--max_stepz", "--max_steps"],
    ),
    "abbreviated flag": ("trainer.sft", "--init model --data sft --out new --max_step 3", ["--max_step"]),
    "missing flag": ("trainer.sft", "--init model --out new --max_steps 3", ["--data"]),
    "unknown key": (
        "trainer.sft",
        "--config typo.yaml --init model --data sft --out new",
        ["learning_rat", "typo.yaml"],
    ),
    "wrong type": (
        "trainer.sft",
        "--init model --data sft --out new --max_steps many",
        ["max_steps", "int", "many"],
    ),
    "wrong type in YAML": (
        "trainer.sft",
        "--config type.yaml --init model --data sft --out new",
        ["max_steps", "int", "[3]"],
    ),
    "no YAML": ("trainer.sft", "--config nowhere.yaml --init model --data sft --out new", ["nowhere.yaml"]),
    "contradiction": (
        "trainer.sft",
        "--init model --data sft --out new --max_steps 3 --epochs 1",
        ["--epochs", "--max_steps"],
    ),
    "missing store": ("trainer.sft", "--init model --data nowhere --out new --max_steps 3", ["nowhere"]),
    "missing init": ("trainer.sft", "--init nowhere --data sft --out new --max_steps 3", ["nowhere"]),
    "wrong kind of store": (
        "trainer.pretrain",
        "--data sft --out new --max_steps 3 --model.preset tiny",
        ["sft"],
    ),
    "small vocabulary": (
        "trainer.pretrain",
        "--data texts --out new --max_steps 3 --model.preset tiny --model.vocab_size 100",
        ["vocab_size", "100"],
    ),
    "init with a small vocabulary": (
        "trainer.sft",
        "--init small --data sft --out new --max_steps 3",
        ["100"],
    ),
    "init without a tensor": (
        "trainer.sft",
        "--init holey --data sft --out new --max_steps 3",
        ["model.norm.weight"],
    ),
    "chat without a model": ("scripts.chat", "--model nowhere --prompt hello", ["nowhere"]),
    "comparison without a model": (
        "scripts.chat",
        "--model model --compare nowhere --prompt hello",
        ["nowhere"],
    ),
    "beginning without an answer": (
        "scripts.chat",
        "--model model --raw --answer_prefix A --prompt hello",
        ["--answer_prefix", "--raw"],
    ),
    "seed below zero": ("scripts.chat", "--model model --seed -1 --prompt hello", ["seed", "-1"]),
    "chat with a store": ("scripts.chat", "--model sft --prompt hello", ["sft", "config.json"]),
    "missing tensor": ("scripts.chat", "--model holey --prompt hello", ["missing model.norm.weight"]),
    "damaged weights": ("scripts.chat", "--model cut --prompt hello", ["model.safetensors"]),
    "model with a small vocabulary": ("scripts.chat", "--model small --prompt hello", ["100"]),
    "long prompt": ("scripts.chat", "--model model --prompt " + "word " * 200, ["prompt has", "takes 128"]),
    "prefix model asked to run causally": (
        "scripts.chat",
        "--model model --prompt hello --prompt_mask causal",
        ["prefix", "causal", "--allow_mask_mismatch"],
    ),
    "permission without need": (
        "scripts.chat",
        "--model model --prompt hello --allow_mask_mismatch",
        ["changes nothing"],
    ),
    "system message for raw text": (
        "scripts.chat",
        "--model model --prompt hello --raw --system x",
        ["--system"],
    ),
    "impossible sampling": ("scripts.chat", "--model model --prompt hello --top_p 2", ["top_p", "2"]),
    "prompt beyond the context": (
        "scripts.chat",
        "--model model --prompt " + "word " * 200,
        ["prompt has ", "the model takes 128"],
    ),
    "unknown mask": (
        "scripts.chat",
        "--model model --prompt hello --prompt_mask prefx",
        ["prompt_mask", "prefix"],
    ),
    "nothing to evaluate": ("scripts.evaluate", "--model model --out new", ["--data", "--loss_data"]),
    "missing questions": (
        "scripts.evaluate",
        "--model model --data nowhere.jsonl --out new",
        ["nowhere.jsonl"],
    ),
    "broken questions": (
        "scripts.evaluate",
        "--model model --data broken.jsonl --max_reject_fraction 0 --out new",
        ["broken.jsonl", "line 2", "max_reject_fraction"],
    ),
    "evaluation under a foreign mask": (
        "scripts.evaluate",
        "--model model --data questions.jsonl --prompt_mask causal --out new",
        ["prefix", "--allow_mask_mismatch"],
    ),
    "evaluation into a folder in use": (
        "scripts.evaluate",
        "--model model --data questions.jsonl --out sft",
        ["sft"],
    ),
    "export into a folder in use": ("scripts.export_hf", "--model model --out sft", ["sft"]),
    "form of weights for an engine that has its own": (
        "scripts.chat",
        "--model model.gguf --engine llama.cpp --dtype int8 --prompt hello",
        ["--dtype", "llama.cpp"],
    ),
    "chat with a file that is not there": (
        "scripts.chat",
        "--model none.gguf --engine llama.cpp --prompt hello",
        ["none.gguf"],
    ),
    "GGUF of a model without a tokenizer": (
        "scripts.export_gguf",
        "--model mute --out new.gguf",
        ["mute", "tokenizer"],
    ),
    "export without a tokenizer": ("scripts.export_hf", "--model mute --out new", ["mute", "tokenizer"]),
    "picture that is no PNG": ("scripts.draw_masks", "--out new/m.foo", [".png", "m.foo"]),
    "picture of a row in a folder": ("scripts.show_batch", "--data sft --png sft", [".png", "sft"]),
    "epoch before the first": ("scripts.show_batch", "--data sft --epoch -1", ["--epoch", "-1"]),
    "folder inside a file": (
        "scripts.train_tokenizer",
        "--data chats.jsonl --vocab_size 600 --out chats.jsonl/new",
        ["chats.jsonl/new", "cannot be made"],
    ),
    "row beyond the end": ("scripts.show_batch", "--data sft --row 99", ["--row", "99"]),
    "no evaluation to compare": ("scripts.compare", "--runs model model --out new", ["evaluation"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with good and bad inputs of every kind."""
    folder = tmp_path_factory.mktemp("bad_input")
    chat = {"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    good = json.dumps(chat) + "\n"
    (folder / "chats.jsonl").write_text(good * 3)
    (folder / "questions.jsonl").write_text(good)
    (folder / "texts.jsonl").write_text('{"text": "Lima"}\n')
    (folder / "broken.jsonl").write_text(good + "{not json\n" + good)
    (folder / "empty.jsonl").write_text("")
    (folder / "typo.yaml").write_text("max_steps: 3\noptimizer:\n  learning_rat: 0.1\n")
    (folder / "type.yaml").write_text("max_steps: [3]\n")
    small_tokenizer().save(folder / "tok")
    for kind, source in (("sft", "chats"), ("pretrain", "texts")):
        store = {"sft": "sft", "pretrain": "texts"}[kind]
        paths = (str(folder / f"{source}.jsonl"),), str(folder / "tok"), str(folder / store)
        write_store(PreparationSettings(kind, *paths))
    save_model(folder / "model", "prefix", context=128)
    save_model(folder / "small", "prefix", vocab_size=100)
    weights = save_model(folder / "holey", "prefix") / "model.safetensors"
    save_file({name: t for name, t in load_file(weights).items() if name != "model.norm.weight"}, weights)
    (save_model(folder / "mute", "causal") / "tokenizer.json").unlink()
    weights = save_model(folder / "cut", "prefix") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def state_of(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def outcomes(files) -> dict[str, tuple[int, str]]:
    """Exit code and output of every case; fails if any of them changed a file."""
    before = state_of(files)
    done = {
        name: call([command, *split_flags(flags)], folder=files)
        for name, (command, flags, _) in CASES.items()
    }
    assert state_of(files) == before
    return {name: (each.returncode, each.stdout + each.stderr) for name, each in done.items()}


def split_flags(flags: str) -> list[str]:
    """Split at spaces, but keep the words of a prompt together."""
    before, marker, prompt = flags.partition("--prompt ")
    word, *after = prompt.split(" --") if marker else [""]
    return (
        before.split()
        + ([marker.strip(), word] if marker else [])
        + [f for a in after for f in f"--{a}".split()]
    )


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line_and_exit_code_2(case, outcomes):
    code, text = outcomes[case]
    assert code == 2, text
    assert text.count("\n") == 1 and text.startswith("error: "), text
    for expected in CASES[case][2]:
        assert expected in text
    assert "Traceback" not in text and "object at 0x" not in text
