"""Adapters (LoRA): the same logits trained, merged and in peft; training beside a base that stays."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from training_runs import SHORT, conversations, data, fresh, init, line, losses, metrics, run_trainer, sft

import scripts.chat
import scripts.draw_masks
import scripts.evaluate
import scripts.export_gguf
import scripts.export_hf
import trainer.sft
from dataset.batch_settings import BatchSettings
from dataset.token_store import TokenStore
from eval.cells import trial_of
from eval.comparison import open_runs
from eval.evaluation import facts_of, store_likelihood
from eval.looks import look_at
from eval.served_model import open_model
from eval.server_settings import ServerSettings
from eval.serving import open_chats
from eval.serving_settings import EvaluationSettings
from model.architectures import model_of
from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import ARCHITECTURES, from_preset
from model.errors import UserError
from model.hugging_face import kind_for
from tests.conftest import one_document
from tests.serving import chat_question, write_lines
from trainer.adapters import AdaptedModel
from trainer.optimizer import Optimizers
from trainer.settings import LoraSettings, OptimizerSettings

QUERIES = "model.layers.0.self_attn.q_proj"
LORA = ("--lora.rank", 4, "--optimizer.learning_rate", 0.02)


def adapted(folder: Path, settings: LoraSettings, **shape) -> tuple[torch.nn.Module, AdaptedModel]:
    """A model from a folder that it is saved in, with factors of random numbers."""
    torch.manual_seed(0)
    model = model_of(from_preset("tiny", vocab_size=97, initializer_range=0.2, **shape))
    save_checkpoint(folder, model, stop_ids=(2,))
    adapter = AdaptedModel(model, settings, str(folder), load_checkpoint(folder).fingerprint, seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval(), adapter


@pytest.mark.parametrize(
    "family, ends", [*((family, None) for family in ARCHITECTURES), ("gpt2", ("v_proj", "o_proj"))]
)
def test_an_adapter_has_the_same_logits_while_it_trains_merged_and_in_peft(family, ends, tmp_path):
    from peft import PeftModel  # takes seconds, and every worker reads every file

    settings = LoraSettings(rank=3, alpha=4, target_modules=ends)
    model, adapter = adapted(tmp_path / "base", settings, architecture=family)
    adapter.save(tmp_path / "adapter", (5,), "chats")
    opened = load_checkpoint(tmp_path / "adapter")
    assert opened.stop_ids == (5,) and opened.trained_on == "chats" and opened.model.config == model.config
    assert opened.model.lm_head.weight is opened.model.model.embed_tokens.weight

    ids, layout = torch.randint(97, (2, 9)), one_document(torch.tensor([0, 0, 0, 0, 0, -1, -1, -1, -1]), 2)
    base = load_checkpoint(tmp_path / "base").model
    with torch.no_grad():
        trained, merged, before = (each.double()(ids, layout) for each in (model, opened.model, base))
        torch.testing.assert_close(merged, trained, rtol=0, atol=1e-5)
        assert (before - trained).abs().max() > 0.1
    if kind_for(model.config):
        export_checkpoint(tmp_path / "base", tmp_path / "exported", drops_router_bias=True)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
        theirs.config._experts_implementation = "eager"
        in_peft = PeftModel.from_pretrained(theirs, tmp_path / "adapter").double().eval()
        with torch.no_grad():
            torch.testing.assert_close(in_peft(ids).logits, model(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", [r"layers\.1\.self_attn\.q_proj", "(q|down)_proj", "proj"])
def test_patterns_of_peft_count_adapters_as_it_does(pattern, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted(tmp_path / "base", LoraSettings(rank=1))
    export_checkpoint(tmp_path / "base", tmp_path / "exported")
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], alpha_pattern={pattern: 60}
    )
    trained = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported"), config)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trained.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        ours, theirs = load_checkpoint(tmp_path / "adapter").model(ids), trained.eval()(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_an_evaluation_of_an_adapter_is_another_one_when_its_base_has_changed(run, base, data, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(run, tmp_path / "run")
    configure(tmp_path / "run", base_model_name_or_path=str(tmp_path / "base"))
    (tmp_path / "run/config.json").unlink()  # as peft leaves it, without a fingerprint
    settings, facts = EvaluationSettings(model="m", loss_data=(str(data / "sft"),)), []
    for scale in (1, 1, 2):
        edit(tmp_path / "base", scale)
        facts.append(facts_of(open_model(tmp_path / "run"), settings))
    assert facts[0] == facts[1] != facts[2]
    with (tmp_path / "base/generation_config.json").open("a") as file:
        file.write(" ")  # which ends answers, where the adapter brings none
    assert facts_of(open_model(tmp_path / "run"), settings) != facts[2]


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run").glob("tokenizer*"):
        file.unlink()
    assert open_model(tmp_path / "run").tokenizer.fingerprint == open_model(run).tokenizer.fingerprint


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A fresh model, whose frozen output layer can tell tokens apart."""
    return fresh(tmp_path_factory.mktemp("base"), data, initializer_range=0.2)


@pytest.fixture(scope="module")
def run(data, base, tmp_path_factory):
    """A training beside a base."""
    out = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        words = line({"--data": data / "sft", "--init": base, "--out": out} | SHORT, "--max_steps", 24, *LORA)
        patch.setattr("sys.argv", ["sft", *words])
        trainer.sft.main()
    return out


def test_a_training_learns_beside_a_base_of_which_no_save_holds_a_weight(run):
    assert losses(run)[-1] < 0.9 * losses(run)[0]
    folder = run / "checkpoints/step-00000024"
    assert not [*run.rglob("model.safetensors")]
    saved = load_file(folder / "adapter_model.safetensors")
    assert {*saved} == {*load_file(run / "adapter_model.safetensors")} and len(saved) == 2 * 7 * 2
    remembered = sum(
        each.numel()
        for name, each in load_file(folder / "training/process-0.safetensors").items()
        if "exp_avg" in name
    )
    assert remembered == 2 * sum(each.numel() for each in saved.values())


def test_exports_of_a_run_directory_hold_the_sum(run, tmp_path, command):
    command(scripts.export_hf, "--model", run, "--out", tmp_path / "merged")
    command(scripts.export_gguf, "--model", run, "--out", tmp_path / "merged.gguf")
    ids, opened = torch.arange(9)[None], load_checkpoint(run).model
    with torch.no_grad():
        merged, ours = load_checkpoint(tmp_path / "merged").model(ids), opened(ids)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert torch.equal(merged, ours)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    written = {each.name: torch.tensor(each.data) for each in GGUFReader(tmp_path / "merged.gguf").tensors}
    assert torch.equal(written["blk.0.attn_q.weight"], opened.state_dict()[f"{QUERIES}.weight"])


def test_every_command_that_answers_or_draws_takes_a_run_directory(run, base, tmp_path, command):
    assert command(scripts.chat, "--model", run, "--prompt", "Where is Ada?", "--max_new_tokens", 4)
    chats = open_chats(ServerSettings(model=(str(run), str(base))), print)
    weights = [chats[path.name].served.model.state_dict()[f"{QUERIES}.weight"] for path in (run, base)]
    assert torch.equal(weights[0], load_checkpoint(run).model.state_dict()[f"{QUERIES}.weight"])
    assert not torch.equal(*weights)
    asked = write_lines(tmp_path / "asked.jsonl", chat_question("Where is Ada?", "Here."))
    flags = ("--data", asked, "--out", tmp_path / "measured", "--max_new_tokens", 2)
    command(scripts.evaluate, "--model", run, *flags)
    [measured] = open_runs([tmp_path / "measured"])  # what is compared, and the arms of experiments
    assert look_at(measured, measured.predictions[0].question, "cpu").maps
    talk = write_lines(tmp_path / "talk.jsonl", conversations()[0])
    command(scripts.draw_masks, "--html", tmp_path / "page.html", "--model", run, "--data", talk)
    assert '"layers": [{"mask": 0, "weights": ' in (tmp_path / "page.html").read_text()


def test_cells_that_measure_an_adapter_are_others_when_its_base_has_changed(
    run, base, data, tmp_path, monkeypatch
):
    addresses = []
    for name, scale in (("one", 1), ("two", 1), ("three", 2)):
        shutil.copytree(base, tmp_path / name / "base")
        shutil.copytree(run, tmp_path / name / "run")
        monkeypatch.chdir(tmp_path / name)
        edit(Path("base"), scale)
        configure(Path("run"), base_model_name_or_path="base")
        asked = {"run": "evaluate", "model": str(Path("run").absolute()), "loss_data": [str(data / "sft")]}
        addresses.append(trial_of({"asked": asked}, "arm", {}, 0).cells["asked"].address)
    assert addresses[0] == addresses[1] != addresses[2]


def test_an_adapter_finds_its_base_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, adapter = adapted(Path("base"), LoraSettings(rank=3))
    adapter.save(tmp_path / "adapter", (5,), "chats")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_checkpoint("../adapter").stop_ids == (5,)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda base: shutil.rmtree(base),
            "adapts .*base, which is not there; write where it is into base_mod",
        ),
        (
            lambda base: edit(base, scale=2),
            "adapts .*base, whose weights have changed since .*fingerprint was",
        ),
        (
            lambda base: (base / "adapter_config.json").write_text("{}"),
            "an adapter itself; expected whole wei",
        ),
    ],
)
def test_a_base_that_was_moved_or_changed_is_told_in_a_line(run, base, tmp_path, spoil, message):
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(run, tmp_path / "run")
    configure(tmp_path / "run", base_model_name_or_path=str(tmp_path / "base"))
    load_checkpoint(tmp_path / "run")
    spoil(tmp_path / "base")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "run")


def edit(folder: Path, scale: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * scale for name, tensor in tensors.items()}, folder / "model.safetensors")


def configure(folder: Path, **values) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"use_dora": True}, "use_dora True is not supported; expected False"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; expected LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported, as it changes the wei"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern '\(' is no pattern"),
        ({"alpha_pattern": {"a{99999999999}": 1}}, "alpha_pattern 'a.9+.' is no pattern"),
        ({"alpha_pattern": {"(.+)+x": 1}}, r"alpha_pattern '\(\.\+\)\+x' repeats or joins too much"),
        ({"alpha_pattern": {"(|)" * 60 + "x": 1}}, "alpha_pattern .* repeats or joins too much"),
        ({"alpha_pattern": {"(" * 3000: 1}}, "alpha_pattern .* repeats or joins too much"),
        ({"r": 5}, "says rank .5., but model.layers.0.* has another"),
        ({"rank_pattern": 5}, "adapter_config.json is damaged, .*rank_pattern: expected dict"),
        ({"lora_alpha": "x"}, "expected a number above 0 as each lora_alpha"),
        ({"alpha_pattern": 3}, "expected a number above 0 as each lora_alpha"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(run, tmp_path, values, message):
    shutil.copytree(run, tmp_path / "run")
    configure(tmp_path / "run", **values)
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / "run")


def test_whole_weights_beside_an_adapter_are_not_left_out_in_silence(run, base, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(base / "model.safetensors", tmp_path / "run")
    with pytest.raises(UserError, match="adapts another model, but model.safetensors lies there, too"):
        load_checkpoint(tmp_path / "run")


def test_factors_that_do_not_fit_the_base_are_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run/adapter_model.safetensors"
    tensors, name = load_file(file), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    pair, wide = (name, name.replace("lora_A", "lora_B")), 300_000  # whose product no memory holds
    huge = {each: torch.full_like(tensors[each], 1e30) for each in pair}
    for changed, message in (
        (dict(zip(pair, (torch.zeros(4, wide), torch.zeros(wide, 4)), strict=True)), "has shape .300000, 3"),
        (huge, "product for model.layers.0.self_attn.q_proj.weight holds values that are no weights"),
        (
            {name: tensors[name][:2]},
            "expected .r, in. and .out, r. as factors of model.layers.0.self_attn.q_",
        ),
        ({name: tensors[name][:, :2]}, "model.layers.0.self_attn.q_proj.weight has shape"),
        (
            {name.replace("layers.0", "layers.7"): tensors[name]},
            "expected .r, in. and .out, r. as factors of",
        ),
        ({"base_model.model.lm_head.weight": tensors[name]}, "unknown base_model.model.lm_head.weight"),
    ):
        save_file({name: each.clone() for name, each in (tensors | changed).items()}, file)
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / "run")
    save_file({}, file)
    with pytest.raises(UserError, match="adapter_model.safetensors holds no factors"):
        load_checkpoint(tmp_path / "run")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lora.alpha", 8], "--lora.alpha: expected --lora.rank with it, got none"),
        (["--lora.rank", 0], "--lora.rank: expected a number above 0, got 0"),
        (
            ["--lora.rank", 2, "--lora.target_modules", "q_proj", "head"],
            "expected some of q_proj .*, got head",
        ),
        (
            ["--lora.rank", 2, "--init", "fresh"],
            "--lora.rank: expected --init with a model to adapt, got fresh",
        ),
        (["--lora.rank", 2, "--init", "{run}"], "--init .* holds an adapter; expected whole weights"),
        (
            ["--lora.rank", 2, "--lora.dropout", 0.1, "--gradient_checkpointing", "true"],
            "--lora.dropout: expect",
        ),
        (
            ["--lora.rank", 2, "--optimizer.router_bias_rate", 0.1],
            "--optimizer.router_bias_rate: expected it",
        ),
    ],
)
def test_what_does_not_go_with_an_adapter_is_refused(sft, run, tmp_path, capsys, flags, message):
    with pytest.raises((UserError, SystemExit)) as error:
        sft(tmp_path / "run", "--max_steps", 1, *(str(flag).format(run=run) for flag in flags))
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_out_where_a_model_is_measured(sft, data, tmp_path):
    flags = ("--max_steps", 2, *LORA, "--lora.dropout", 0.9, "--validation", data / "sft")
    sft(tmp_path / "run", *flags, "--validate_every_steps", 1)
    [*_, record] = (each for each in metrics(tmp_path / "run") if "validation" in each)
    served = open_model(tmp_path / "run")
    store = TokenStore(data / "sft", served.tokenizer)
    found = store_likelihood(served, store, BatchSettings(max_seq_len=48), rows=4)
    assert record["nats_per_token"] == pytest.approx(found.nats_per_token, rel=1e-6)


def test_a_step_changes_factors_alone_also_of_biases_that_choose_experts(tmp_path):
    model, _ = adapted(tmp_path / "base", LoraSettings(rank=3), architecture="qwen3_moe")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    optimizers = Optimizers(model, OptimizerSettings(), torch.float32)
    ids, layout = torch.randint(97, (2, 9)), one_document(torch.full((9,), -1), 2)
    model(ids, layout, ids).backward()
    optimizers.clip()
    optimizers.step(1.0)
    changed = {name for name, each in model.state_dict().items() if not torch.equal(each, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert {name.split(".")[4] for name in changed} == {"q_proj", "k_proj", "v_proj", "o_proj"}
