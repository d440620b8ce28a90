"""Where a model that answers computes: all its tensors are on its device, and answers stay the same."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataset.batch_settings import BatchSettings
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from eval.answers import answer_questions
from eval.chat import ChatSession, TextSampling
from eval.evaluation import store_likelihood
from eval.look import attention_maps
from eval.plots import save_attention
from eval.questions import parse_question
from eval.scoring import score
from eval.served_model import ServedModel, open_model
from model.config import from_preset
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.serving import choose_device, store_weights
from model.transformer import LanguageModel
from scripts.chat import main
from tests.conftest import STRATEGIES, tiny_model, windowed
from tests.pretend_device import PLACE, PretendTensor, pretend_device
from tests.serving import save_model, save_served, served_model, small_tokenizer

ROOT = Path(__file__).parent.parent
WINDOWS = {"all": {}, "rolling": windowed(5, 5), "mixed": windowed(5, None)}
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here: what needs one was not tested"
)


def moved(served: ServedModel) -> ServedModel:
    return replace(served, model=served.model.to(PLACE))


def talk(served: ServedModel) -> list[tuple[int, ...]]:
    session = ChatSession(served, TextSampling(5, temperature=1.0, repetition_penalty=1.3), "Be brief.")
    for question in ("Capital of Peru?", "它的货币呢？"):
        "".join(session.ask(question))
    "".join(session.retry())
    session.undo()
    "".join(session.ask("And?"))
    return [turn.answer_ids for turn in session.turns]


def answer_batch(model: LanguageModel, sampling: Sampling) -> list:
    prompts = [Prompt(tuple(range(3, 3 + n)), (0,) * (n - 1) + (-1,)) for n in (1, 40, 7, 20, 3)]
    requests = [Request(p, replace(sampling, max_new_tokens=1 + n)) for n, p in enumerate(prompts)]
    return Generator(model, (7,), prefill_chunk_tokens=16).generate(requests, batch_size=2)


def test_a_tensor_that_is_left_on_the_cpu_is_found():
    with pretend_device():
        there = torch.ones(2, 3).to(PLACE)
        assert (there * torch.tensor([1, 2, 3], device=PLACE)).tolist() == [[1, 2, 3]] * 2
        with pytest.raises(RuntimeError, match="mixes devices"):
            there * torch.tensor([1, 2, 3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_chat_on_another_device_gives_the_same_answers(strategy):
    expected = talk(served_model(strategy))
    with pretend_device():
        served = moved(served_model(strategy))
        assert served.device == PLACE and talk(served) == expected


@pytest.mark.parametrize("windows", WINDOWS)
def test_a_batch_on_another_device_gives_the_same_answers_and_probabilities(windows):
    sampling = Sampling(temperature=1.0, top_k=20, top_p=0.9, log_probabilities=True)
    expected = answer_batch(tiny_model(**WINDOWS[windows]), sampling)
    with pretend_device():
        answers = answer_batch(tiny_model(**WINDOWS[windows]).to(PLACE), sampling)
    assert [each.ids for each in answers] == [each.ids for each in expected]
    for one, two in zip(answers, expected, strict=True):
        assert one.log_probabilities == pytest.approx(two.log_probabilities, abs=1e-9)


@pytest.mark.parametrize("windows", ["rolling", "mixed"])
def test_scores_on_another_device_are_the_same(windows):
    def scores_of(model: LanguageModel) -> list[float]:
        prompt = Prompt(tuple(range(10)), (0,) * 10)
        scores = score(Generator(model, ()), prompt, [[3], [4, 5, 6], [7, 8]])
        return [number for each in scores for number in each.log_probabilities.tolist()]

    expected = scores_of(tiny_model(**WINDOWS[windows]))
    with pretend_device():
        assert scores_of(tiny_model(**WINDOWS[windows]).to(PLACE)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_narrow_weights_answer_on_another_device(weights):
    config = from_preset("tiny", vocab_size=97, initializer_range=0.2)
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    with pretend_device():
        store_weights(model.to(PLACE), weights)
        assert all(isinstance(each, PretendTensor) for each in model.state_dict().values())
        assert all(len(answer.ids) for answer in answer_batch(model, Sampling()))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_questions_losses_and_pictures_on_another_device_are_the_same(strategy, tmp_path):
    chosen = {"question": "Capital?", "choices": ["Lima", "Quito"], "answer": 0}
    questions = [
        parse_question({"messages": [{"role": "user", "content": "Q"}], "answers": ["A"]}, "a", "s"),
        parse_question(chosen, "b", "s"),
    ]
    small_tokenizer().save(tmp_path / "tok")
    data = tmp_path / "chats.jsonl"
    turns = [{"role": r, "content": c} for r, c in (("user", "Q?"), ("assistant", "法国"))]
    data.write_text((json.dumps({"messages": turns}) + "\n") * 5)
    write_store(PreparationSettings("sft", (str(data),), str(tmp_path / "tok"), str(tmp_path / "store")))

    batches = BatchSettings(max_seq_len=64, prompt_mask=strategy)

    def measure(served: ServedModel) -> tuple:
        answers = answer_questions(served, questions, TextSampling(6), 2)
        store = TokenStore(tmp_path / "store", served.tokenizer)
        return [a.text for a in answers], store_likelihood(served, store, batches, 2).nats

    texts, nats = measure(served_model(strategy))
    with pretend_device():
        assert measure(moved(served_model(strategy))) == (texts, pytest.approx(nats))


def test_where_models_look_is_drawn_from_another_device(tmp_path):
    ids = torch.arange(6)[None]
    expected = attention_maps(served_model("prefix").model, ids)
    with pretend_device():
        maps = attention_maps(served_model("prefix").model.to(PLACE), ids.to(PLACE))
        for here, there in zip(expected, maps, strict=True):
            torch.testing.assert_close(there.cpu(), here)
        save_attention(tmp_path / "attention.png", {"prefix": maps}, list("abcdef"))
    assert (tmp_path / "attention.png").stat().st_size > 0


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_without_an_accelerator_auto_is_the_cpu_and_asking_for_one_is_refused(tmp_path, monkeypatch):
    served = open_model(save_model(tmp_path / "model", "causal"))
    assert served.device.type == "cpu" and served.speed.endswith(
        f"CPU with {torch.get_num_threads()} threads"
    )
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    flags = ["--model", str(tmp_path / "model"), "--prompt", "Q", "--device", "cuda"]
    monkeypatch.setattr("sys.argv", ["chat", *flags])
    with pytest.raises(UserError, match="--device cuda: torch finds only cpu here; leave it out to use that"):
        main()


@needs_gpu
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_gpu_gives_the_greedy_answers_of_the_cpu(strategy, tmp_path):
    folder = save_served(served_model(strategy), tmp_path / "model")
    here, there = (open_model(folder, device=name) for name in ("cpu", "cuda"))
    assert there.device.type == "cuda" and torch.cuda.get_device_name() in there.speed
    assert there.model.lm_head.weight is there.model.model.embed_tokens.weight
    answers = []
    for served in (here, there):
        session = ChatSession(served, TextSampling(16))
        for question in ("Capital of Peru?", "它的货币呢？"):
            "".join(session.ask(question))
        answers.append([turn.answer_ids for turn in session.turns])
    assert answers[0] == answers[1]


@needs_gpu
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_every_form_of_weights_answers_on_a_gpu(weights, tmp_path):
    folder = save_model(tmp_path / "model", "causal")
    session = ChatSession(open_model(folder, device="cuda").in_form(weights, False, True), TextSampling(5))
    assert "".join(session.ask("Q"))


@needs_gpu
def test_an_evaluation_on_a_gpu_finds_what_one_on_the_cpu_finds(tmp_path):
    folder = save_served(served_model("prefix"), tmp_path / "model")
    record = {"messages": [{"role": "user", "content": "Q"}], "answers": ["A"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(record) + "\n")
    tables = []
    for device in ("cpu", "cuda"):
        flags = ["--model", folder, "--device", device, "--data", tmp_path / "questions.jsonl"]
        command = [sys.executable, "-m", "scripts.evaluate", *map(str, flags)]
        tables.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert tables[0] == tables[1]
