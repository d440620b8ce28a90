"""Trainings on one process and on many: the same gradients, losses, checkpoints; whole, or cut up."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from forked_runs import Run
from test_imports import ROOT
from torch import Tensor
from torch.distributed import TCPStore
from training_runs import SHORT, assert_same_course, data, experts, init, line, metrics, run_trainer, sft
from two_processes import (
    first_batch,
    gradients,
    prepare,
    run,
    run_pair,
    settings_for,
    train_compiled,
    train_in_every_way,
)

from eval.running import CPU, ON_CPU
from model.checkpoint import load_checkpoint
from model.errors import UserError
from trainer.run_dir import RunDirectory

WHOLE_BATCH = {"batch_size": 8, "gradient_accumulation": 1}


@pytest.fixture(scope="module")
def pair(data, init, experts, tmp_path_factory) -> Path:
    """What two processes left, and `one`: begun by one process, continued by two."""
    folder = tmp_path_factory.mktemp("pair")
    run(settings_for(data, init, folder / "one", "muon", **WHOLE_BATCH, max_minutes=1e-9))
    run_pair(folder / "log", train_in_every_way, data, init, experts, folder, folder / "one")
    return folder


@pytest.fixture(scope="module")
def single(data, init, experts, tmp_path_factory) -> Path:
    """The same trainings by one process, with one micro-batch a step."""
    folder = tmp_path_factory.mktemp("single")
    for name in ("adamw", "muon"):
        run(settings_for(data, init, folder / name, name, **WHOLE_BATCH))
    run(settings_for(data, experts, folder / "experts", "muon", **WHOLE_BATCH))
    return folder


@pytest.fixture(scope="module")
def expected(data, init) -> dict[str, Tensor]:
    """The gradients of the mean over all targets of the first 8 rows, by autograd alone."""
    training = prepare(settings_for(data, init, "unused", **WHOLE_BATCH))
    batch, model = first_batch(training), load_checkpoint(init).model
    assert (lengths := (batch.labels >= 0).sum(1)).max() > 1.5 * lengths.min(), "rows are not ragged"
    (model(batch.ids, batch.layout, batch.labels) / batch.num_targets).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-6) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= share * gradient.norm(), name


@pytest.mark.parametrize("batch_size, accumulation", [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("recomputes", [False, True])
def test_micro_batches_of_one_process_give_the_gradients_of_the_whole_batch(
    data, init, expected, batch_size, accumulation, recomputes
):
    spread = {"batch_size": batch_size, "gradient_accumulation": accumulation}
    got = gradients(prepare(settings_for(data, init, "unused", **spread, gradient_checkpointing=recomputes)))
    assert_same_gradients(got, expected)


@pytest.mark.parametrize("recomputes", [False, True])
def test_micro_batches_in_bfloat16_give_the_gradients_but_for_its_rounding(data, init, expected, recomputes):
    spread = {"batch_size": 4, "gradient_accumulation": 2, "dtype": "bfloat16"}
    got = gradients(prepare(settings_for(data, init, "unused", **spread, gradient_checkpointing=recomputes)))
    assert_same_gradients(got, expected, share=2**-5)  # a number of 8 bits is off by up to 2^-9


@pytest.mark.parametrize("how", ["whole", "whole_recomputed", "sharded", "sharded_recomputed", "by_launcher"])
def test_two_processes_give_the_gradients_of_one(pair, expected, how):
    assert_same_gradients(torch.load(pair / f"{how}.pt")["gradients"], expected)


def test_a_sharded_process_keeps_half_of_the_parameters(pair, expected):
    total = sum(gradient.numel() for gradient in expected.values())
    assert torch.load(pair / "whole.pt")["numbers_here"] == total
    for how in ("sharded", "sharded_recomputed", "by_launcher"):
        assert torch.load(pair / f"{how}.pt")["numbers_here"] == pytest.approx(total / 2, rel=0.01)


@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_processes_exchange_gradients_once_a_step(pair, how):
    accumulated, at_once = torch.load(pair / f"{how}.pt")["exchanges"]
    assert accumulated == at_once > 0


@pytest.mark.parametrize("name", ["adamw", "muon", "experts"])
@pytest.mark.parametrize("spread", ["whole", "sharded"])
def test_two_processes_train_as_one_does(pair, single, spread, name):
    assert_same_course(single / name, pair / f"{spread}_{name}")


@pytest.mark.long  # the compiler takes a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can be compiled without g++")
def test_compiled_processes_train_as_plain_ones_do(pair, data, init, tmp_path):
    run_pair(tmp_path / "log", train_compiled, data, init, tmp_path)
    for name in ("whole", "sharded"):
        assert_same_course(pair / f"{name}_adamw", tmp_path / f"compiled_{name}")


def test_the_sharding_of_a_launcher_trains_as_one_process_does(pair, single):
    assert_same_course(single / "adamw", pair / "by_launcher")


def test_a_sharded_run_that_was_stopped_ends_as_if_it_was_not(pair):
    whole, broken = pair / "sharded_muon", pair / "broken"
    assert metrics(whole) == metrics(broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()


def test_one_process_continues_what_two_sharded_ones_began(pair, single, data, init, tmp_path):
    out = shutil.copytree(pair / "left", tmp_path / "run")
    assert len(list(out.glob("checkpoints/*/training/process-*.safetensors"))) == 2
    run(settings_for(data, init, out, "muon", **WHOLE_BATCH))
    assert not list(out.glob("checkpoints/*/training/process-1.safetensors"))
    assert_same_course(single / "muon", out)


def test_two_sharded_processes_continue_what_one_began(pair, single):
    assert_same_course(single / "muon", pair / "one")


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:99])])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_sharded_checkpoint_is_one_line(pair, data, init, tmp_path, damage, rank):
    out = shutil.copytree(pair / "left", tmp_path / "run")
    [file] = out.glob(f"checkpoints/*/training/process-{rank}.safetensors")
    damage(file)
    with pytest.raises(UserError, match="step-00000001 is damaged"):
        run(settings_for(data, init, out, "muon", **WHOLE_BATCH))


def as_forks(log: Path, words: list[str]) -> str:
    """Train on two nodes that are told of as torchrun tells them; return what they show."""
    nodes = Run(log, words, world=2, nodes=2)
    assert nodes.wait() == 0, nodes.output
    return nodes.output


def by_torchrun(log: Path, words: list[str]) -> str:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # holds a free port
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{store.port}", "--rdzv_id", "nodes"]
    launch = ["--nnodes", "2", "--nproc_per_node", "1", *meeting, "--rdzv_conf", "is_host=0"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *launch,
        "-m",
        f"trainer.{words[0]}",
        *words[1:],
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "w") as output:
        to_log = {"stdout": output, "stderr": output}
        nodes = [subprocess.Popen(command, cwd=ROOT, env=environment, **to_log) for _ in range(2)]
    assert [node.wait(120) for node in nodes] == [0, 0], log.read_text()
    return log.read_text()


@pytest.mark.parametrize("start", [as_forks, pytest.param(by_torchrun, marks=pytest.mark.long)])
def test_two_nodes_meet_and_train_as_one_process_does(sft, data, init, tmp_path, start):
    flags = ["--max_steps", 3, "--gradient_accumulation", 2, "--validation", data / "sft"]
    sft(tmp_path / "one", *flags)
    places = {"--data": data / "sft", "--init": init, "--out": tmp_path / "two"}
    shown = start(tmp_path / "log", ["sft", *line(places | SHORT, *flags, "--batch_size", 2)])
    assert "2 processes" in shown and shown.count("finished:") == 1
    assert_same_course(tmp_path / "one", tmp_path / "two")


CONFIGURATIONS = (ROOT / CPU).parent


@pytest.mark.parametrize("file", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_launches_by_every_configuration(file):
    """Its own parser and checks, up to the environment that it starts processes in."""
    config = load_config_from_file(str(file))
    words = ["--config_file", str(file), "--main_process_ip", "127.0.0.1", "--machine_rank", "1"]
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args([*words, "-m", "trainer.sft", "--out", "out"])
    )
    assert arguments.num_processes == config.num_processes >= 1
    if arguments.multi_gpu or arguments.use_fsdp:
        environment = prepare_multi_gpu_env(arguments)
        assert environment.get("FSDP_VERSION") == ("2" if file.stem == "fsdp2" else None)
        assert int(arguments.nproc_per_node) * config.num_machines == config.num_processes
    else:
        _, environment = prepare_simple_launcher_cmd_env(arguments)
        assert config.num_processes == 1 and (ON_CPU.items() <= environment.items()) == (
            file.stem == "one_cpu"
        )


@pytest.mark.parametrize(
    "environment, sharding, message",
    [
        ({"WORLD_SIZE": "2"}, "auto", "expected WORLD_SIZE=2 processes, accelerate sees 1"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "auto",
            "asked for several processes on CPUs and started one",
        ),
        ({}, "fsdp", "sharding by FSDP2 needs two or more processes, got 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "auto", "needs two or more processes, got 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "none", "none contradicts the FSDP of the"),
        ({"ACCELERATE_USE_FSDP": "true"}, "auto", "expected fsdp_version 2 from the launcher, got 1"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "auto",
            "use --gradient_checkpointing instead",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "auto",
            "expected fsdp_offload_params false from the launcher, got true",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"},
            "auto",
            "expected fsdp_reshard_after_forward true or false, got full_shard",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer"},
            "auto",
            "expected fsdp_transformer_cls_to_wrap decoderlayer from the launcher, got bertlayer",
        ),
    ],
)
def test_what_a_launcher_did_not_mean_is_refused(sft, tmp_path, monkeypatch, environment, sharding, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        sft(tmp_path / "run", "--max_steps", 3, "--sharding", sharding)
    assert not (tmp_path / "run").exists()


def test_a_node_without_the_shared_folder_is_told_so(tmp_path):
    with pytest.raises(UserError, match="is not there on .*; expected a folder that all nodes share"):
        RunDirectory(tmp_path / "run").check_shared()
