"""minimind's published model and tokenizer: opened, prompted as its template says, trained, exported."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from training_runs import SHORT, line, run_trainer

from dataset import bounded_template
from dataset.conversation import Message, render
from dataset.preparation import PreparationSettings, write_store
from dataset.tokenizer import Tokenizer
from eval.answers import answer_questions
from eval.chat import TextSampling
from eval.questions import Question
from eval.served_model import open_model
from model.checkpoint import load_checkpoint
from model.errors import UserError
from scripts import chat, evaluate, export_hf, import_pth
from tests.conftest import windows_of
from tests.minimind import TEMPLATE, VOCAB_SIZE, save_minimind

OPENS = TEMPLATE.replace(r"'<think>\n\n</think>\n\n'", r"'<think>\n'")
CALL = '{"name": "weather", "arguments": {"place": "新"}}'
TOOL = '{"type": "function", "function": {"name": "weather"}}'
ASKED, AGAIN = Message("user", "sor ruko?"), Message("user", "lima\nnota")
SAID, CALLED = Message("assistant", "Mito."), Message("assistant", "", tool_calls=(CALL,))
RESULTS = Message("tool", '{"degrees": 3}'), Message("tool", "4")
PROMPTS = [
    [ASKED],
    [Message("system", "tike"), ASKED, SAID, AGAIN],
    [ASKED, Message("assistant", "Mito.", thought="nopa"), AGAIN],
    [ASKED, CALLED, RESULTS[0]],
    [ASKED, Message("assistant", "Loka", tool_calls=(CALL, CALL)), *RESULTS, SAID, AGAIN],
    [Message("system", "tike", tools=(TOOL, TOOL)), ASKED],
    [Message("system", "", tools=(TOOL,)), ASKED],
]


@pytest.fixture(scope="session")
def minimind(tmp_path_factory):
    return save_minimind(tmp_path_factory.mktemp("minimind") / "minimind-3")


@pytest.fixture(scope="session")
def older(tmp_path_factory):
    """The same without tags in its vocabulary."""
    return save_minimind(tmp_path_factory.mktemp("minimind") / "minimind-2", tags=False)


def as_template_takes(messages):
    """The messages and tools that `apply_chat_template` wants."""
    tools = [json.loads(tool) for tool in messages[0].tools] or None
    told = []
    for each in messages:
        calls = [{"type": "function", "function": json.loads(call)} for call in each.tool_calls]
        told.append({"role": each.role, "content": each.content, "reasoning_content": each.thought or None})
        told[-1] |= {"tool_calls": calls} if calls else {}
    return told, tools


@pytest.mark.parametrize("messages", PROMPTS)
def test_prompts_have_the_ids_of_the_models_own_template(minimind, messages):
    from transformers import AutoTokenizer

    told, tools = as_template_takes(messages)
    theirs = AutoTokenizer.from_pretrained(minimind)
    expected = theirs.apply_chat_template(told, tools=tools, add_generation_prompt=True)["input_ids"]
    assert render(messages, open_model(minimind).tokenizer, True).ids.tolist() == expected


def test_an_answer_is_trained_on_after_the_prompt_that_it_will_be_asked_with(minimind):
    tokenizer = Tokenizer.load(minimind)
    asked, whole = render([ASKED], tokenizer, True).ids, render([ASKED, SAID], tokenizer)
    assert whole.ids[: len(asked)].tolist() == asked.tolist()
    assert whole.targets.nonzero()[0].tolist() == list(range(len(asked), len(whole) - 1))
    thinking = render([ASKED, Message("assistant", "Mito.", thought="nopa")], tokenizer)
    assert tokenizer.decode(thinking.ids[thinking.targets]) == "<think>\nnopa\n</think>\n\nMito.<|im_end|>"


def test_an_answer_that_ends_inside_the_thought_of_its_prompt_is_unfinished(minimind, tmp_path):
    folder = shutil.copytree(minimind, tmp_path / "opens")
    (folder / "chat_template.jinja").write_text(OPENS)
    question = Question("n", "s", "", "", (ASKED,), ("Mito.",))
    [prediction] = answer_questions(open_model(folder), [question], TextSampling(2), 1)
    assert prediction.text.startswith("<think>\n") and prediction.is_unfinished


def with_template(folder: Path, template: bytes) -> Tokenizer:
    """The tokenizer of a folder with another chat template."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    files = {"tokenizer_config.json": (folder / "tokenizer_config.json").read_bytes()}
    return Tokenizer(backend, files | {"chat_template.jinja": template})


def test_an_answer_without_a_thought_ends_the_one_that_its_prompt_has_begun(minimind):
    tokenizer = with_template(minimind, OPENS.encode())
    asked, whole = render([ASKED], tokenizer, True).ids, render([ASKED, SAID], tokenizer)
    assert (
        tokenizer.decode(asked).endswith("<think>\n") and whole.ids[: len(asked)].tolist() == asked.tolist()
    )
    said = tokenizer.decode(whole.ids[whole.targets])
    assert said == f"\n</think>\n\n{SAID.content}<|im_end|>"
    thinking = render([ASKED, Message("assistant", "Mito.", thought="nopa")], tokenizer)
    assert tokenizer.decode(thinking.ids[thinking.targets]) == "<think>\nnopa\n</think>\n\nMito.<|im_end|>"


def test_a_template_that_goes_on_for_ever_is_one_line(minimind, monkeypatch):
    assert bounded_template.MOST_LINES <= 10**7, "more take minutes"
    monkeypatch.setattr(bounded_template, "MOST_LINES", 10**5)
    loops = b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="cannot be taken over: it goes on and on"):
        render([ASKED], with_template(minimind, loops + TEMPLATE.encode()))


DOUBLE = "{% set n = namespace(t='ab') %}{% for i in range(40) %}{% set n.t = TWICE %}{% endfor %}"
HUGE = ("10 ** (10 ** 8)", "7 ** (7 ** 12)", "'a' * 10 ** 11", "10 ** 11 * [1]", "'a'.center(10 ** 11)")
HUGE += ("'a' | center(10 ** 11)", "'%99999999999d' % 1", "'%99999999999d' | format(1)")
HUGE += ("'{:99999999999}'.format(1)", "'{:{}}'.format(1, 10 ** 11)", "[1] | tojson(indent=10 ** 11)")


@pytest.mark.parametrize(
    "piece", [f"{{{{ {each} }}}}" for each in HUGE] + [DOUBLE.replace("TWICE", f"n.t {s} n.t") for s in "+~"]
)
def test_a_template_that_makes_huge_things_is_one_line(minimind, piece):
    with pytest.raises(UserError, match="cannot be taken over: it makes something larger than"):
        render([ASKED], with_template(minimind, f"{piece}{TEMPLATE}".encode()))


def test_a_template_may_compute(minimind):
    piece = "{{ ('ab' * 3 + '%3d' % 2 ** 10 ~ 'c'.center(5) ~ '{:4}'.format(7) ~ (1 + 2 * 3) % 4) | length }}"
    found = render([ASKED], with_template(minimind, (piece + TEMPLATE).encode()), True).ids
    plain = render([ASKED], with_template(minimind, TEMPLATE.encode()), True)
    expected = str(len("ababab1024  c     7 3"[:6]) + 4 + 5 + 4 + 1)
    assert with_template(minimind, b"").decode(found) == expected + with_template(minimind, b"").decode(
        plain.ids
    )


def test_an_id_that_exists_pads_and_endoftext_still_ends_answers(minimind):
    tokenizer = open_model(minimind).tokenizer
    assert (tokenizer.own_vocab_size, tokenizer.vocab_size) == (VOCAB_SIZE, VOCAB_SIZE)
    assert tokenizer.pad_id == tokenizer.endoftext_id == 0
    assert tokenizer.stop_ids == (2, 0)


def prepared(folder, tokenizer, **answer):
    """A store of the same short conversation, many times."""
    record = [{"role": "user", "content": "sor ruko?"}, {"role": "assistant", "content": "Mito."} | answer]
    (folder / "chat.jsonl").write_text((json.dumps({"messages": record}) + "\n") * 12)
    write_store(
        PreparationSettings("sft", (str(folder / "chat.jsonl"),), str(tokenizer), str(folder / "sft"))
    )
    return folder / "sft"


def test_it_chats_evaluates_trains_and_exports(minimind, tmp_path, command, run_trainer):
    assert command(chat, "--model", minimind, "--prompt", "sor?", "--max_new_tokens", 4)
    question = {"context": "ruko lima", "question": "ruko?", "answers": ["lima"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    data = ["--data", tmp_path / "questions.jsonl", "--max_new_tokens", 4]
    assert "questions" in command(evaluate, "--model", minimind, *data, "--out", tmp_path / "evaluation")
    store, out = prepared(tmp_path, minimind), tmp_path / "run"
    defaults = SHORT | {"--data": store, "--init": minimind, "--out": out, "--max_steps": 3}
    run_trainer("sft", *line(defaults))
    command(export_hf, "--model", out, "--out", tmp_path / "exported")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "exported" / name).read_bytes() == (minimind / name).read_bytes()
    assert not (out / "chat_template.jinja").exists()
    assert load_checkpoint(tmp_path / "exported").model.config.vocab_size == VOCAB_SIZE


def test_a_model_with_windows_is_exported_for_transformers_alone(tmp_path, command):
    folder = save_minimind(tmp_path / "model", sliding_window=5)
    words = [export_hf, "--model", folder, "--out", tmp_path / "exported"]
    with pytest.raises(UserError, match="vLLM, SGLang and llama.cpp ignore"):
        command(*words)
    assert not (tmp_path / "exported").exists()
    command(*words, "--for_engine", "transformers")
    assert any(windows_of(load_checkpoint(tmp_path / "exported").model.config))


def test_the_vocabulary_grows_only_for_a_tag_that_a_message_has(older, tmp_path, run_trainer, capsys):
    assert len(render([ASKED], open_model(older).tokenizer, True)) > 5
    for name, answer, size in (("plain", {}, VOCAB_SIZE), ("thinking", {"reasoning_content": "nopa"}, 6406)):
        (tmp_path / name).mkdir()
        store, out = prepared(tmp_path / name, older, **answer), tmp_path / name / "run"
        run_trainer("sft", *line(SHORT | {"--data": store, "--init": older, "--out": out, "--max_steps": 3}))
        assert ("grown from 6400 to 6406 tokens" in capsys.readouterr().out) == (size > VOCAB_SIZE)
        served = open_model(out)
        assert served.model.config.vocab_size == served.tokenizer.own_vocab_size == size
        assert Tokenizer.load(out).fingerprint == Tokenizer.load(older).fingerprint


def test_a_model_without_a_template_learns_texts_as_it_is_and_chats_with_two_more_tokens(
    minimind, tmp_path, run_trainer
):
    base = shutil.copytree(minimind, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    for file in (base / "tokenizer_config.json", base / "tokenizer.json"):
        file.write_text(file.read_text().replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>"))
    (tmp_path / "texts.jsonl").write_text('{"text": "sor ruko lima"}\n' * 12)
    texts = (str(tmp_path / "texts.jsonl"),)
    write_store(PreparationSettings("pretrain", texts, str(base), str(tmp_path / "texts")))
    for kind, store, size in (
        ("pretrain", tmp_path / "texts", 6400),
        ("sft", prepared(tmp_path, base), 6402),
    ):
        given = SHORT | {"--data": store, "--init": base, "--out": tmp_path / f"{kind}-run", "--max_steps": 3}
        run_trainer(kind, *line(given))
        served = open_model(tmp_path / f"{kind}-run")
        assert served.model.config.vocab_size == served.tokenizer.own_vocab_size == size
        assert (served.path / "chat_template.jinja").exists() == (kind == "sft")
        assert set(served.stop_ids) == {served.tokenizer.endoftext_id, *([size - 1] if kind == "sft" else [])}
        for file in ("tokenizer_config.json", "tokenizer.json")[: 1 + (kind == "pretrain")]:
            assert (served.path / file).read_bytes() == (base / file).read_bytes()


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_its_own(minimind, tmp_path):
    folder = save_minimind(tmp_path / "model", vocab_size=6300)
    with pytest.raises(UserError, match="the tokenizer has 6400 tokens but the model takes 6300"):
        open_model(folder)


@pytest.fixture
def pth(minimind, tmp_path) -> Path:
    """The weights as minimind's trainers leave them: half precision, the embedding twice."""
    state = load_checkpoint(minimind).model.state_dict()
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_weights_in_a_pth_file_become_the_model_that_they_were(minimind, pth, tmp_path, command):
    shape = ["--model.preset", "tiny", "--weights", pth, "--tokenizer", minimind]
    assert "is written" in command(import_pth, *shape, "--out", tmp_path / "model")
    opened, expected = load_checkpoint(tmp_path / "model"), load_checkpoint(minimind)
    for name, tensor in expected.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor.half().float()), name
    assert (tmp_path / "model/tokenizer.json").read_bytes() == (minimind / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "content, fault",
    [
        ({"model.norm.weight": torch.ones(64)}, "missing model.embed_tokens.weight"),
        ([torch.ones(2)], "expected names and tensors"),
        (Path("x"), "is not a file of tensors alone"),
        ({name: torch.ones(2) for name in ("a", "_orig_mod.a")}, "a name stands twice"),
        ({"a": torch.eye(2).to_sparse()}, "expected names and tensors"),
        ({"a": torch.ones(2, device="meta")}, "expected names and tensors"),
    ],
)
def test_a_pth_file_of_anything_else_is_refused(minimind, tmp_path, command, content, fault):
    torch.save(content, tmp_path / "x.pth")
    shape = ["--model.preset", "tiny", "--weights", tmp_path / "x.pth", "--tokenizer", minimind]
    with pytest.raises(UserError, match=fault):
        command(import_pth, *shape, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()
