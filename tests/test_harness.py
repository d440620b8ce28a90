"""Tasks of lm-evaluation-harness: the scores that its class for transformers finds, masks, and faults."""

import json
import re
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install -r requirements-optional.txt")

import lm_eval
from lm_eval import evaluator, simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.prompts import prompt_of, prompt_of_ids
from eval import harness_tasks
from eval.engines.transformers_files import export
from eval.harness import SightlineLM
from eval.harness_tasks import run_tasks
from eval.scoring import score
from eval.served_model import ServedModel, open_model
from eval.serving_settings import EvaluationSettings
from model.errors import UserError
from scripts import evaluate as command
from tests.serving import save_served, served_model, write_lines

ROWS = [
    {"question": f"{n} and the capital of Peru?", "choices": ["Lima", "the sol", "欧元"], "answer": n % 3}
    for n in range(5)
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
KINDS = {
    "choice": """output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rolling": """output_type: loglikelihood_rolling
doc_to_target: "{{question * 8}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "free": """output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a task of each kind over a local file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = write_lines(folder / "rows.jsonl", *ROWS)
    for name, rest in KINDS.items():
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"peru_{name}", data=data) + rest)
    return folder


def settings_of(tasks: Path, *names: str, **others: Any) -> EvaluationSettings:
    names = tuple(f"peru_{name}" for name in names or KINDS)
    return EvaluationSettings(model="m", tasks=names, include_path=str(tasks), batch_size=4, **others)


def told(found: dict[str, Any]) -> dict[str, tuple[dict, list]]:
    """Of what the harness found, metrics and the answers to each request, by task."""
    return {
        name: (
            {key: value for key, value in found["results"][name].items() if isinstance(value, float)},
            [answer for sample in found["samples"][name] for [answer] in sample["resps"]],
        )
        for name in found["samples"]
    }


@pytest.fixture(scope="module")
def exported(request, tmp_path_factory) -> tuple[ServedModel, Path]:
    """A model in float64, whose context is shorter than some texts, and what transformers opens."""
    folder = tmp_path_factory.mktemp(request.param)
    made = served_model(request.param, context=64, stops=True)
    served = open_model(save_served(made, folder / "model"))
    export(str(served.path), str(folder / "exported"))
    served.model.double()
    return served, folder / "exported"


def found_by_both(exported, tasks: Path, monkeypatch, *names: str, in_chats: bool) -> tuple[dict, dict]:
    """What we find with one example before each question, and what the harness does with transformers."""
    served, folder = exported
    asked = settings_of(tasks, *names, num_fewshot=1, apply_chat_template=in_chats, out=str(tasks / "new"))
    ours = told(run_tasks(served, asked, lambda what, count: None, print))
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # which asks pip
    theirs = simple_evaluate(
        model=HFLM(str(folder), dtype="float64", device="cpu", batch_size=2, trust_remote_code=True),
        tasks=[*asked.tasks],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        num_fewshot=1,
        apply_chat_template=in_chats,
    )
    return ours, told(theirs)


@pytest.mark.parametrize("exported", ["causal"], indirect=True)
def test_of_texts_a_causal_model_has_the_scores_and_answers_that_the_harness_finds_of_its_export(
    exported, tasks, monkeypatch
):
    ours, theirs = found_by_both(exported, tasks, monkeypatch, in_chats=False)
    for name, (metrics, answers) in theirs.items():
        assert ours[name][0] == pytest.approx(metrics, rel=1e-6)
        if name == "peru_choice":
            assert [is_greedy for _, is_greedy in ours[name][1]] == [is_greedy for _, is_greedy in answers]
            assert [total for total, _ in ours[name][1]] == pytest.approx([total for total, _ in answers])
        else:
            assert ours[name][1] == (answers if name == "peru_free" else pytest.approx(answers))
    assert len({*ours["peru_free"][1]}) > 1 and not any("e" in text for text in ours["peru_free"][1])


@pytest.mark.parametrize("exported", ["causal", "prefix"], indirect=True)
def test_in_chats_a_model_has_them_under_its_mask_but_that_headers_are_no_part_of_answers(
    exported, tasks, monkeypatch
):
    ours, theirs = found_by_both(exported, tasks, monkeypatch, "choice", "free", in_chats=True)
    assert ours["peru_free"] == theirs["peru_free"]
    totals = ([total for total, _ in found["peru_choice"][1]] for found in (ours, theirs))
    of_header = [one - two for one, two in zip(*totals, strict=True)]
    for n in range(0, len(of_header), 3):  # the newline after `assistant`, the same before each choice
        assert of_header[n : n + 3] == pytest.approx(of_header[n : n + 1] * 3) and of_header[n] > 1


@pytest.mark.parametrize("exported", ["causal", "prefix"], indirect=True)
def test_choices_are_scored_after_the_prompt_that_training_would_have_given(exported, tasks):
    served, _ = exported
    model = SightlineLM(served)
    asked = [{"role": "system", "content": "<|im_end|>"}, {"role": "user", "content": "Peru?"}]
    begun = [*asked, {"role": "assistant", "content": "Li"}]
    texts = [model.apply_chat_template(asked), model.apply_chat_template(begun, add_generation_prompt=False)]
    found = model.loglikelihood([Instance("loglikelihood", {}, (text, "ma"), 0) for text in texts])
    prompt = prompt_of(
        render([Message(**each) for each in asked], served.tokenizer, True), served.prompt_mask
    )
    encode = served.tokenizer.encode
    for context, (total, _) in zip((prompt, prompt.append(encode("Li"))), found, strict=True):
        [scored] = score(served.generator(), context, [encode("ma")])
        assert total == pytest.approx(scored.total, abs=1e-9)


@pytest.mark.parametrize("exported", ["causal", "prefix"], indirect=True)
def test_a_text_before_a_continuation_is_a_message_under_the_mask(exported):
    served, _ = exported
    [(total, _)] = SightlineLM(served).loglikelihood([Instance("loglikelihood", {}, ("Peru? ", "Lima"), 0)])
    prompt = prompt_of_ids(served.tokenizer.encode("Peru?"), served.prompt_mask)
    [scored] = score(served.generator(), prompt, [served.tokenizer.encode(" Lima")])
    assert total == pytest.approx(scored.total, abs=1e-9)


def run_command(monkeypatch, capsys, *flags: Any) -> str:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, flags)])
    command.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("exported", ["causal"], indirect=True)
def test_the_command_tells_metrics_and_keeps_samples(exported, tasks, tmp_path, monkeypatch, capsys):
    flags = ["--model", exported[0].path, "--include_path", tasks, "--limit", 2, "--out", tmp_path / "out"]
    flags += ["--tasks", "peru_choice,peru_free"]
    evaluate = lm_eval.evaluate
    monkeypatch.setattr(lm_eval, "evaluate", lambda **given: print("what it says") or evaluate(**given))
    text = run_command(monkeypatch, capsys, *flags)
    assert "peru_choice acc " in text and "peru_free exact_match" in text and "what it says" not in text
    kept = json.loads((tmp_path / "out/tasks.json").read_text())
    assert kept["prompt_mask"] == exported[0].prompt_mask and kept["settings"]["limit"] == 2
    assert kept["results"]["peru_choice"]["acc,none"] in (0, 0.5, 1)
    samples = (tmp_path / "out/samples_peru_choice.jsonl").read_text().splitlines()
    assert [json.loads(line)["doc"]["question"] for line in samples] == [row["question"] for row in ROWS[:2]]
    with pytest.raises(UserError, match="exists already"):
        run_command(monkeypatch, capsys, *flags)
    run_command(monkeypatch, capsys, *flags, "--overwrite")
    (tmp_path / "out/mine").write_text("")
    with pytest.raises(UserError, match="holds something else .mine."):
        run_command(monkeypatch, capsys, *flags, "--overwrite")


FAULTS = {
    "has no task peru_coice; near it: peru_choice": ("peru_coice", ""),
    "cannot be prepared .*nowhere": (
        "peru_bad",
        "dataset_kwargs: {data_files: {test: nowhere.jsonl}}",
    ),
    "expected a folder of task files, got": ("peru_choice", None),
    "asks for answers of 256 tokens but the model takes 64": ("peru_bad", "generation_kwargs: {until: []}"),
    "cannot be asked .*no element 2": ("peru_bad", 'doc_to_target: "{{{0: 1, 1: 1}[question[0] | int]}}"'),
    "no file in --out can be named after a/b": ("a/b", "task: a/b"),
    "asks to generate with num_beams 2": ("peru_bad", "generation_kwargs: {num_beams: 2, max_gen_toks: 3}"),
}


@pytest.mark.parametrize("exported", ["causal"], indirect=True)
@pytest.mark.parametrize("words", FAULTS)
def test_what_is_wrong_with_tasks_is_one_line(words, exported, tasks, tmp_path, monkeypatch):
    name, change = FAULTS[words]

    def of_folder(include_path: str, include_defaults: bool = True) -> TaskManager:
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(harness_tasks, "TaskManager", of_folder)  # the whole list takes long to read
    copytree(tasks, tmp_path / "tasks")
    text = (tasks / "free.yaml").read_text().replace("peru_free", "peru_bad")
    for line in (change or "").split("\n"):
        key = line.partition(":")[0]
        text = re.sub(f"^{key}:.*$", line, text, flags=re.M) if key else text
    (tmp_path / "tasks/bad.yaml").write_text(text)
    folder = tmp_path / "nowhere" if change is None else tmp_path / "tasks"
    out = str(tmp_path / "out")
    asked = EvaluationSettings(model="m", tasks=(name,), include_path=str(folder), out=out)
    with pytest.raises(UserError, match=words):
        run_tasks(exported[0], asked, lambda what, count: None, print)
