"""What a training shows of itself: log lines, validation, samples, `loss.png`, trackers, `summary.json`."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    after_step,
    conversations,
    data,
    init,
    line,
    losses,
    metrics,
    pretrain,
    run_trainer,
    sentences,
    sft,
)

from dataset.conversation import TARGET, Rendered
from dataset.prompts import raw_prompt
from dataset.token_store import TokenStore
from eval.chat import ChatSession, RawSession, TextSampling
from eval.served_model import open_model
from model.checkpoint import load_checkpoint
from model.errors import UserError
from model.systems import num_cores
from trainer import loss_picture, reporting
from trainer.device import Device
from trainer.loss_picture import LossPicture, draw_losses, read_curves, smoothed
from trainer.placement import compile_layers
from trainer.reporting import Meter, Reporter, _options, _run_id, in_short
from trainer.run_dir import METRICS, SAMPLES, RunDirectory
from trainer.settings import PretrainSettings
from trainer.summary import busy
from trainer.training_state import Ledger, Progress
from trainer.validation import draw_samples, in_one_line, sample_prompts

FIELDS = {
    *("step", "epoch", "loss", "learning_rate", "gradient_norm", "skipped_steps", "tokens", "targets"),
    *("tokens_per_second", "targets_per_second", "waiting_share", "seconds_left"),
}


def records(out: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Clock:
    """Stands for `time.monotonic` in a module and goes on only when it is told to."""

    def __init__(self, monkeypatch, module) -> None:
        self.seconds = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.seconds)


def test_the_first_step_and_every_interval_have_a_line_and_the_first_an_estimate(pretrain, tmp_path, capsys):
    pretrain(tmp_path / "run", "--max_steps", 4, "--log_every_steps", 2)
    shown = capsys.readouterr().out
    lines = [text for text in shown.splitlines() if text.startswith("step")]
    logged = records(tmp_path / "run")
    assert [record["step"] for record in logged] == [1, 2, 4]
    for record, text in zip(logged, lines, strict=True):
        assert record.keys() >= FIELDS and all(record[name] is not None for name in FIELDS)
        assert text == f"step {record['step']}/4 {in_short(record)}"
    assert logged[1]["tokens"] > logged[0]["tokens"] > logged[0]["targets"] > 0
    assert re.search(r"\nstep 1/4 .*\nestimate   about .* in all, .* left\nstep 2/4 ", shown)
    assert [text for text in shown.replace(str(tmp_path), "").splitlines() if len(text) > 100] == []


def test_a_log_line_of_a_large_training_fits_100_columns():
    record = {"loss": 11.2345, "learning_rate": 9.7e-4, "gradient_norm": 0.4312, "waiting_share": 0.12}
    record |= {"tokens_per_second": 1_234_567.0, "targets_per_second": 1_134_567.0}
    record |= {"model_flop_utilisation": 0.45, "memory_megabytes": 123_456.0, "seconds_left": 71.3 * 3600}
    line = f"step 123456/200000 {in_short(record)}"
    rest = "norm 0.43 1.2M/1.1M tok/s wait 12% peak 45% 123GB 71 h left"
    assert line == f"step 123456/200000 loss 11.23 lr 9.7e-4 {rest}" and len(line) <= 100
    unknown = {"loss": None, "gradient_norm": None, "seconds_left": None, "tokens_per_second": 642.3}
    line = in_short(record | unknown)
    assert "loss not finite" in line and "norm not finite" in line and "642/1.1M" in line and "? left" in line


def test_rates_count_the_waiting_for_data_and_nothing_between_steps(monkeypatch):
    clock, progress = Clock(monkeypatch, reporting), Progress(step=7, tokens=9_000, targets=8_000)
    meter = Meter(progress, first_compiles=False)

    def slow_batches():
        for _ in range(2):
            clock.seconds += 1.0  # waiting
            yield "rows"

    for _ in meter.timed(slow_batches()):
        clock.seconds += 3.0
        progress.tokens, progress.targets = progress.tokens + 400, progress.targets + 100
        progress.ledger = Ledger(flops=progress.ledger.flops + 2000.0)
        meter.end_step()
        clock.seconds += 50.0  # a save
    assert meter.read() == {
        "tokens_per_second": 800 / 8,
        "targets_per_second": 200 / 8,
        "flops_per_second": 4000 / 8,
        "waiting_share": 2 / 8,
    }


def test_the_time_left_is_the_mean_of_all_steps_but_the_first_with_what_comes_between(monkeypatch):
    clock = Clock(monkeypatch, reporting)
    for compiles in (False, True):
        meter, left = Meter(Progress(), compiles), []
        for _, seconds in zip(meter.timed(iter("abcd")), (90.0, 2.0, 4.0, 3.0), strict=True):
            clock.seconds += seconds
            meter.end_step()
            left.append(meter.seconds_left(steps_left=30))
            clock.seconds += 1.0  # a save
        assert left == [None if compiles else 2700.0, 60.0, 105.0, 110.0]


def test_the_share_of_the_peak_is_the_arithmetic_of_the_steps_over_their_time(
    pretrain, tmp_path, monkeypatch
):
    monkeypatch.setattr(reporting, "peak_flops", lambda device, dtype: 1e9)
    pretrain(tmp_path / "run", "--max_steps", 4, "--log_every_steps", 2)
    flops, tokens = 0.0, 0
    for record in records(tmp_path / "run"):
        seconds = (record["tokens"] - tokens) / record["tokens_per_second"]
        flops, tokens = flops + record["model_flop_utilisation"] * 1e9 * seconds, record["tokens"]
        assert record["memory_megabytes"] > 50
    assert flops == pytest.approx(json.loads((tmp_path / "run/summary.json").read_text())["flops"])


def test_a_long_pretraining_on_a_cpu_is_told_of_a_short_one(tmp_path, capsys):
    for shape, seconds, lines in (("fresh", 36_001, 2), ("fresh", 35_999, 1), ("saved", 36_001, 1)):
        settings = PretrainSettings(data=("a",), out=str(tmp_path), max_steps=9, init=shape)
        device = Device(Accelerator(cpu=True), torch.float32, None, "")
        reporter = Reporter(settings, device, 9, False, None)
        reporter.say_estimate(seconds, 60.0)
        shown = capsys.readouterr().out.splitlines()
        assert shown[0] == "estimate   about 10 h in all, 10 h left" and len(shown) == lines
    assert Path("configs/pretrain_cpu.yaml").exists()


def test_every_validation_set_is_measured_in_nats_and_in_bits(pretrain, data, tmp_path, capsys):
    again = shutil.copytree(data / "pretrain", tmp_path / "again")
    stores = ["--validation", data / "pretrain", again]
    pretrain(tmp_path / "run", "--max_steps", 4, "--validate_every_steps", 2, *stores)
    shown = capsys.readouterr().out
    measured = [record for record in records(tmp_path / "run") if "validation" in record]
    assert [(record["step"], record["validation"]) for record in measured] == [
        (step, name) for step in (2, 4) for name in ("pretrain", "again")
    ]
    for one, two in zip(measured[::2], measured[1::2], strict=True):
        assert one["nats_per_token"] == two["nats_per_token"] and one["bits_per_byte"] == two["bits_per_byte"]
        nats, bits = two["nats_per_token"], two["bits_per_byte"]
        assert f"validation again {nats:.4f} nats/token {bits:.4f} bits/byte" in shown
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    best = {
        name: min(m["nats_per_token"] for m in measured if m["validation"] == name)
        for name in ("pretrain", "again")
    }
    assert {name: each["best"]["nats_per_token"] for name, each in summary["validation"].items()} == best


def test_samples_change_no_step_of_a_training(sft, pretrain, data, tmp_path):
    for name, train in (("sft", sft), ("pretrain", pretrain)):
        often = ["--max_steps", 3, "--validate_every_steps", 2, "--validation", data / name]
        with_samples, without = tmp_path / f"{name}-with", tmp_path / f"{name}-without"
        train(with_samples, *often, "--samples", 2, "--sample_tokens", 6)
        train(without, *often)
        assert metrics(with_samples) == metrics(without)
        for file in ("model.safetensors", "training/process-0.safetensors"):
            first, second = (out / "checkpoints/step-00000003" / file for out in (with_samples, without))
            assert first.read_bytes() == second.read_bytes()
        assert [record["step"] for record in records(with_samples, "samples.jsonl")] == [2, 2, 3, 3]
        assert not (without / "samples.jsonl").exists()


@pytest.mark.parametrize("mask", ["causal", "prefix", "history"])
def test_a_sample_of_a_fine_tuning_is_what_the_chat_answers(sft, data, tmp_path, mask, capsys):
    question = "Ada goes to the tower. Where is Ada?"
    flags = ["--max_steps", 3, "--prompt_mask", mask, "--sample_prompts", question, "--sample_tokens", 9]
    sft(tmp_path / "run", *flags)
    [sample] = records(tmp_path / "run", "samples.jsonl")
    session = ChatSession(open_model(tmp_path / "run"), TextSampling(max_new_tokens=9))
    assert sample == {
        "step": 3,
        "prompt": question,
        "text": "".join(session.ask(question)),
        "finish_reason": session.last.finish_reason,
    }
    assert sample["text"] and f"sample     {question} → {sample['text']}"[:40] in capsys.readouterr().out


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_a_sample_of_a_pretraining_is_what_the_model_continues(pretrain, tmp_path, mask):
    flags = ["--prompt_mask", mask, "--samples", 3, "--sample_tokens", 9]
    pretrain(tmp_path / "run", "--max_steps", 3, *flags)
    samples = records(tmp_path / "run", "samples.jsonl")
    session = RawSession(open_model(tmp_path / "run"), TextSampling(max_new_tokens=9))
    assert len({sample["prompt"] for sample in samples}) == 3
    for sample in samples:
        assert any(text.startswith(sample["prompt"]) for text in sentences())
        assert sample["text"] == "".join(session.ask(sample["prompt"]))


def test_questions_of_the_data_are_asked_as_they_stand_in_training(data, init):
    settings = PretrainSettings(data=("a",), out="b", max_steps=1, samples=24)
    prompts = sample_prompts(settings, [TokenStore(data / "sft")], "segment", 512)
    first_turns = [record["conversations"][0]["content"] for record in conversations()]
    assert [each.text for each in prompts] == first_turns
    tokenizer = TokenStore(data / "sft").tokenizer
    for each in prompts:
        asked = f"<|im_start|>user\n{each.text}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(each.prompt.ids) == asked and set(each.prompt.block_ids) == {0}


def test_prompts_without_room_for_an_answer_are_passed_over_or_refused(data, pretrain, tmp_path):
    settings = PretrainSettings(data=("a",), out="b", max_steps=1, samples=3, sample_tokens=40)
    stores = [TokenStore(data / "sft")]
    lengths = sorted(len(each.prompt.ids) for each in sample_prompts(settings, stores, "causal", 512))
    assert all(
        len(p.prompt.ids) <= lengths[1] for p in sample_prompts(settings, stores, "causal", lengths[1] + 40)
    )
    with pytest.raises(UserError, match="--sample_prompts: expected at most 464 tokens.* got 601"):
        pretrain(tmp_path / "run", "--max_steps", 3, "--sample_prompts", "7" * 600)
    assert not (tmp_path / "run").exists()


def test_a_conversation_that_begins_with_what_is_learned_gives_no_prompt(data):
    store = TokenStore(data / "sft")
    learned = Rendered(store[0].ids, store[0].codes | TARGET)
    stores = [type("Documents", (list,), {"kind": "sft", "tokenizer": store.tokenizer})([learned, store[1]])]
    settings = PretrainSettings(data=("a",), out="b", max_steps=1, samples=1)
    question = conversations()[1]["conversations"][0]["content"]
    assert [each.text for each in sample_prompts(settings, stores, "causal", 512)] == [question]


def test_samples_of_steps_that_are_done_again_are_replaced(tmp_path):
    run_dir = RunDirectory(tmp_path)
    said = {2: "a", 4: "\u2028b\x85", 6: "c"}
    run_dir.append_records(SAMPLES, [{"step": step, "text": text} for step, text in said.items()])
    run_dir.cut_records(4, is_validated=True)
    assert run_dir.read_records(SAMPLES) == [{"step": 2, "text": "a"}, {"step": 4, "text": said[4]}]
    run_dir.cut_records(4, is_validated=False)
    assert run_dir.read_records(SAMPLES) == [{"step": 2, "text": "a"}]


def test_a_sample_is_printed_on_one_line():
    assert in_one_line({"prompt": "a\nb", "text": "c" * 300}) == "a⏎b → " + "c" * 82 + "…"
    assert in_one_line({"prompt": "a", "text": "家" * 300}) == "a → " + "家" * 42 + "…"
    assert in_one_line({"prompt": "a\x1b[2J", "text": "b\rc\u2028d"}) == "a [2J → b c d"


def test_sampling_neither_compiles_nor_leaves_the_model_evaluating(data, init, monkeypatch):
    model, store = load_checkpoint(init).model.train(), TokenStore(data / "pretrain")
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, **_: lambda *inputs: compiled.append(inputs))
    compile_layers(model, lengths_vary=False)
    settings = PretrainSettings(data=("a",), out="b", max_steps=1, samples=2)
    draw_samples(model, store.tokenizer, sample_prompts(settings, [store], "causal", 512), 3)
    assert model.training and not compiled


def test_the_picture_is_drawn_anew_as_soon_as_little_time_is_lost_by_it(tmp_path, monkeypatch):
    clock, drawn = Clock(monkeypatch, loss_picture), []

    def slow_drawing(run_dir: RunDirectory) -> None:
        drawn.append(run_dir)
        clock.seconds += 0.5

    monkeypatch.setattr(loss_picture, "draw_losses", slow_drawing)
    picture = LossPicture(RunDirectory(tmp_path))
    counts = []
    for wait in (29, 1, 49, 1):
        clock.seconds += wait
        picture.draw(at_once=False)
        counts.append(len(drawn))
    assert counts == [0, 1, 1, 2]


def test_the_picture_shows_what_the_metrics_hold(tmp_path):
    run_dir = RunDirectory(tmp_path)
    for step, loss in ((1, 8.0), (2, None), (3, 1.0)):
        run_dir.append_records(METRICS, [{"step": step, "loss": loss, "learning_rate": step / 10}])
    run_dir.append_records(METRICS, [{"step": 3, "validation": "val", "nats_per_token": 1.5}])
    assert read_curves(run_dir.read_records(METRICS)) == {
        "training": [(1, 8.0), (3, 1.0)],
        "validation val": [(3, 1.5)],
        "learning rate": [(1, 0.1), (2, 0.2), (3, 0.3)],
    }
    assert smoothed([float(n) for n in range(100)])[:97] == [float(n) for n in range(97)]
    assert smoothed([5.0]) == [5.0] and smoothed([]) == []
    draw_losses(run_dir)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$^$", "a_$x_{$", "_", "世"])
def test_names_are_text_in_the_picture_whatever_they_hold(tmp_path, name):
    run_dir = RunDirectory(tmp_path / name)
    run_dir.path.mkdir()
    run_dir.append_records(METRICS, [{"step": 3, "validation": name, "nats_per_token": 1.5}])
    draw_losses(run_dir)


def test_tensorboard_gets_every_figure(pretrain, data, tmp_path, capsys):
    flags = ["--max_steps", 3, "--validation", data / "pretrain", "--tracker", "tensorboard"]
    pretrain(tmp_path / "run", *flags)
    [folder] = re.findall("tracker    tensorboard --logdir (.*)\n", capsys.readouterr().out)
    events = EventAccumulator(folder)
    events.Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "waiting_share"):
        seen = [(event.step, event.value) for event in events.Scalars(f"training/{name}")]
        logged = [(record["step"], record[name]) for record in records(tmp_path / "run") if name in record]
        torch.testing.assert_close(torch.tensor(seen), torch.tensor(logged))
    assert [event.step for event in events.Scalars("pretrain/bits_per_byte")] == [3]


def test_wandb_gets_one_run_for_all_starts_of_a_run_directory(pretrain, tmp_path, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    flags = ["--max_steps", 4, "--save_every_steps", 2, "--tracker", "wandb"]
    after_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        pretrain(tmp_path / "run", *flags)
    pretrain(tmp_path / "run", *flags)
    assert losses(tmp_path / "run")[3:]
    files = [*(tmp_path / "run/wandb").glob("offline-run-*/*.wandb")]
    run_id = (tmp_path / "run/wandb/run_id").read_text()
    assert files and {file.name for file in files} == {f"run-{run_id}.wandb"}
    wait_until(lambda: all(file.stat().st_size > 1000 for file in files))
    settings = [re.search(rb'max_steps.{1,6}?(?="?4)"?4', file.read_bytes(), re.S)[0] for file in files]
    assert all(each.endswith(b"4") and not each.endswith(b'"4') for each in settings)


def test_the_name_of_a_run_at_a_tracker_goes_through_no_link_and_is_one(tmp_path):
    place, elsewhere = tmp_path / "run_id", tmp_path / "elsewhere"
    place.symlink_to(elsewhere)
    for _ in range(2):  # once there is nothing at its end, once what is nobody's business
        with pytest.raises(UserError, match="is a link"):
            _run_id(place)
        assert not elsewhere.exists() or elsewhere.read_text() == "secret"
        elsewhere.write_text("secret")
    place.unlink()
    place.write_bytes(b"\x1b[2J\xff")
    with pytest.raises(UserError, match="no name of a run, .*; take it away"):
        _run_id(place)


def test_wandb_works_offline_without_a_key(pretrain, data, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "nowhere"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    pretrain(tmp_path / "run", "--max_steps", 3, "--validation", data / "pretrain", "--tracker", "wandb")
    [file] = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    wait_until(lambda: file.stat().st_size > 1000)  # a process of wandb's writes it
    written = file.read_bytes()  # protocol buffers, whose values are JSON
    for record in records(tmp_path / "run"):
        group = record.get("validation", "training")
        for name in {"loss", "gradient_norm", "bits_per_byte"} & record.keys():
            assert f"{group}/{name}".encode() in written and json.dumps(record[name]).encode() in written


@pytest.mark.parametrize("tracker", ["wandb", "swanlab", "trackio"])
def test_a_training_that_goes_on_is_the_same_run_at_a_tracker_and_another_one_is_not(tracker, tmp_path):
    def told(folder: Path) -> dict[str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        settings = PretrainSettings(data=("a",), out=str(folder), max_steps=1, tracker=tracker)
        return _options(settings)[tracker]

    first, again, other = (told(tmp_path / place / "run") for place in ("a", "a", "b"))
    assert first == again and first["resume"] == "allow" and first["name"].startswith("run")
    key = "name" if tracker == "trackio" else "id"
    assert first[key] != other[key]


class Notebook(GeneralTracker):
    """A tracker that somebody registered with accelerate."""

    name, requires_logging_directory = "notebook", True
    pages: list[tuple[int, dict]] = []
    fails = False

    def __init__(self, project: str, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def start(self) -> None:
        (self.folder / "notebook").mkdir(exist_ok=True)
        if self.fails:
            raise ConnectionError("no answer")

    @property
    def tracker(self) -> list:
        return self.pages

    def store_init_configuration(self, values: dict) -> None:
        self.pages.append((0, values))

    def log(self, values: dict, step: int | None = None, **options: object) -> None:
        self.pages.append((step, values))


def test_any_tracker_that_accelerate_knows_is_passed_through(pretrain, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(Notebook, "pages", [])
    pretrain(tmp_path / "run", "--max_steps", 3, "--tracker", "notebook")
    (_, settings), *pages = Notebook.pages
    assert settings["max_steps"] == "3" and settings["optimizer.name"] == "adamw"
    assert [(step, page["training/loss"]) for step, page in pages] == list(
        enumerate(losses(tmp_path / "run"), 1)
    )


def test_a_tracker_that_fails_is_one_line_and_the_run_can_begin_again(pretrain, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(Notebook, "fails", True)
    with pytest.raises(UserError, match="--tracker notebook cannot be used: no answer"):
        pretrain(tmp_path / "run", "--max_steps", 3, "--tracker", "notebook")
    pretrain(tmp_path / "run", "--max_steps", 3)
    assert len(losses(tmp_path / "run")) == 3


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(pretrain, tmp_path):
    with pytest.raises(UserError, match="--tracker clearml is not installed; install it with pip, or use"):
        pretrain(tmp_path / "run", "--max_steps", 3, "--tracker", "clearml")
    assert not (tmp_path / "run").exists()


def test_a_training_beside_other_work_is_told_so():
    assert busy(1.9, 2) == []
    assert busy(2.34, 2) == ["load       2.3 on 2 cores: other work takes them, and steps will take longer"]


def test_the_summary_tells_what_was_trained_where(pretrain, data, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loss_picture, "draw_losses", lambda run_dir: drawn.append(draw_losses(run_dir)))
    pretrain(
        tmp_path / "run", "--max_steps", 4, "--validation", data / "pretrain", "--validate_every_steps", 2
    )
    assert len(drawn) == 1, "of a training of seconds, only its end is worth a picture"
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    logged = losses(tmp_path / "run"), records(tmp_path / "run")
    assert (summary["finished"], summary["steps"], summary["skipped_steps"]) == (True, 4, 0)
    assert all(summary[key] == logged[1][-2][key] for key in ("tokens", "targets"))
    assert (
        summary["seconds"] > 0
        and summary["parameters"] == load_checkpoint(tmp_path / "run").model.num_parameters()
    )
    assert summary["validation"]["pretrain"]["best"]["step"] == 4
    assert summary["versions"]["torch"] == torch.__version__
    assert len((summary["commit"] or "x" * 40).removesuffix("-dirty")) == 40
    assert "cpu" in summary["device"] and summary["machine"]
    assert summary["processor"].endswith(f", {num_cores()} cores") and summary["processor"][0] != ","
