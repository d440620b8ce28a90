import json
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from dataset.packing import best_fit
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from model.checkpoint import load_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.loss import NO_TARGET, summed_cross_entropy
from model.strategies import strategy_named
from model.systems import own_bytes
from scripts.bench import quality
from scripts.bench.__main__ import main
from scripts.bench.engines import Workload, make_engines
from scripts.bench.entered import ROOT, Spy
from scripts.bench.growth import Growth, draw, exponent
from scripts.bench.measuring import measure
from scripts.bench.reference_loop import Recipe, _train
from scripts.bench.step_engines import Conditions
from scripts.bench.train import full_rows
from tests.serving import save_model, small_tokenizer, write_lines


@pytest.mark.long
def test_the_bench_of_data_measures_every_step(tmp_path, monkeypatch, capsys):
    turns = [{"role": "user", "content": "法国 1"}, {"role": "assistant", "content": "巴黎 2"}]
    (tmp_path / "a.jsonl").write_text((json.dumps({"conversations": turns}) + "\n") * 3)
    sizes = [
        "--size",
        "1",
        "--slice_size",
        "1",
        "--rounds",
        "1",
        "--batch_seconds",
        "0",
        "--vocab_size",
        "280",
        "--documents",
        "2000",
    ]
    flags = ["--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), *sizes]
    monkeypatch.setattr("sys.argv", ["bench", "data", *flags])
    monkeypatch.setattr("scripts.bench.data.MEGABYTE", 2000)
    main()
    table = capsys.readouterr().out
    lines = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.json"]
    assert {line["name"] for line in lines} >= {
        "train_tokenizer on 1 MB of",
        "prepare_data",
        "order of chats",
    }
    assert "order of texts: " in table and "batches" in table
    assert all(line["name"] in table and line["seconds"] > 0 and line["documents"] > 0 for line in lines)


def test_the_bench_of_decoding_measures_both_engines_on_every_task(tmp_path, monkeypatch, capsys):
    shape = ["--preset", "tiny", "--vocab_size", "300", "--dtype", "float32", "--compile", "false"]
    sizes = ["--batches", "1", "3", "--contexts", "5", "9", "--queue", "3"]
    few = ["--new_tokens", "3", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench", "decode", *shape, *sizes, *few])
    monkeypatch.setattr("scripts.bench.decode.BANDWIDTH_BYTES", 2**20)
    main()
    table, record = capsys.readouterr().out, json.loads((tmp_path / "decode.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["decode.json"]
    names = [f"batch {batch}, context {context}" for context in (5, 9) for batch in (1, 3)]
    assert [line["name"] for line in record["lines"]] == [*names, "queue of 3"]
    assert record["machine"]["GB/s"] > 0 and record["machine"]["ours"] == "float32 weights"
    for line in record["lines"]:
        is_single = line["name"].startswith("batch 1,")
        others = ["theirs"] + ["llama.cpp"] * bool(is_single and find_spec("llama_cpp"))
        assert (
            line["name"] in table
            and line.keys() >= {*others}
            and ("llama.cpp" in others) == ("llama.cpp" in line)
        )
        for who in ("ours", *others):
            assert line[who]["first_seconds"] > 0 < line[who]["tokens_per_second"]
            middle, least, most = line[who]["ratio"]
            assert least <= middle <= most
        assert line["ours"]["ratio"] == line["ours"]["sooner"] == [1, 1, 1]


def test_the_bench_of_load_finds_that_clients_get_what_each_gets_alone(tmp_path, monkeypatch, capsys):
    shape = ["--preset", "tiny", "--vocab_size", "600", "--clients", "3", "--context", "5"]
    few = ["--new_tokens", "9", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["bench", "load", *shape, *few])
    main()
    table, record = capsys.readouterr().out, json.loads((tmp_path / "load.json").read_text())
    assert record["as_alone"] == 3 and table.rstrip().endswith("3 of 3")
    assert all(speed["tokens_per_second"] > 0 < speed["first_seconds"] for speed in record["turns"][0])


def test_engines_answer_every_task_with_as_many_tokens(tmp_path):
    engines, _ = make_engines(from_preset("tiny", vocab_size=300), "float32", False, tmp_path)
    told = {name: [] for name in engines}
    for name, engine in engines.items():
        engine(Workload(((1, 2), (3,), (4, 5, 6)), (4, 2, 3), 2), told[name].append)
    assert sum(told["ours"]) == 4 + 2 + 3
    assert sum(told["theirs"]) == 2 * 4 + 1 * 3  # rows that are done go on
    assert sum(told.get("llama.cpp", [9])) == 4 + 2 + 3


@pytest.mark.parametrize("flags", [["--batches", "0"], ["--new_tokens", "1"], ["--rounds", "0"]])
def test_a_measurement_of_nothing_is_refused(flags, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["bench", "decode", "--out", str(tmp_path), *flags])
    with pytest.raises((UserError, SystemExit)):
        main()


def test_functions_are_counted_until_the_loss_is_there(monkeypatch):
    def main():
        best_fit(np.array([3, 2]), 4, 0, 0)
        summed_cross_entropy(torch.ones(1, 2, 3), torch.ones(4, 3), torch.tensor([[1, 1]]))
        strategy_named("causal")

    monkeypatch.setitem(sys.modules, "command", SimpleNamespace(main=main))
    spy = Spy()
    spy.follow("command", {})
    files = {file for file, _ in spy.entered}
    assert files >= {"dataset/packing.py", "model/loss.py"} and "model/strategies.py" not in files
    assert {("dataset/packing.py", "best_fit"), ("dataset/packing.py", "_fullest_rows")} < spy.entered


def test_a_command_that_fails_says_why():
    with pytest.raises(UserError, match="bad luck"):
        measure([sys.executable, "-c", "raise SystemExit('bad luck')"])


def test_memory_of_child_processes_counts():
    child = "import time; x = bytearray([1]) * 2**27; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 2**27 < measure([sys.executable, "-c", parent]).peak_bytes < 2**28


def test_the_memory_of_a_process_is_not_that_of_the_one_that_started_it():
    code = "from model.systems import own_bytes; print(own_bytes('VmHWM'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**26 < own_bytes("VmHWM")


def test_pages_of_files_are_not_held(tmp_path):
    (tmp_path / "store").write_bytes(bytes(2**26))
    read = "file = open(sys.argv[1], 'rb'); pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)"
    code = f"import mmap, sys, time; {read}; assert not any(pages[::4096]); time.sleep(0.3)"
    assert 2**20 < measure([sys.executable, "-c", code, str(tmp_path / "store")]).peak_bytes < 2**25


@pytest.mark.long
def test_the_bench_of_training_compares_both_engines_and_both_masks(tmp_path, monkeypatch, capsys):
    turns = [{"role": "user", "content": "法国 1"}, {"role": "assistant", "content": "巴黎 2"}]
    chats = [{"conversations": turns * (1 + n)} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, chats)))
    shape = ["--preset", "tiny", "--vocab_size", "280", "--max_seq_len", "96", "--batch_size", "3"]
    flags = ["--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--compile", "false"]
    sizes = ["--rounds", "1", "--steps", "1", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["bench", "train", *flags, *shape, *sizes])
    main()
    table, record = capsys.readouterr().out, json.loads((tmp_path / "out/train.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.json"]
    assert record["machine"]["dtype"] == "float32" and record["machine"]["GFLOP/s"] > 0
    assert [len(group) for group in record["groups"]] == [2, 2, 2]
    for line in (line for group in record["groups"] for line in group):
        assert line["name"] in table and line["tokens_per_second"] > 0 and line["peak_megabytes"] > 100
        assert 0 < line["peak_share"] < 1 and 0 <= line["padding_share"] < 1
    (ours, theirs), (packed, padded), (prefix, causal) = record["groups"]
    assert ours["padding_share"] == theirs["padding_share"] == 0 < padded["padding_share"]
    assert packed["ratio"] == packed["tokens_per_second"] / padded["tokens_per_second"]
    assert prefix["padding_share"] == causal["padding_share"]


@pytest.mark.long
def test_the_bench_of_quality_tries_all_loops_and_goes_on_with_the_best(tmp_path, monkeypatch, capsys):
    write_lines(tmp_path / "a.jsonl", *({"text": f"法国 {n} 巴黎 {n * n}"} for n in range(60)))
    shape = ["--preset", "tiny", "--vocab_size", "280", "--max_seq_len", "24", "--minutes", "0.2"]
    sizes = ["--shares", "0.5", "--seeds", "2", "--batch_sizes", "2", "64", "--own_batch_sizes", "2", "4"]
    flags = ["--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["bench", "quality", *flags, *shape, *sizes])
    costs = {"never": (0.1, 1.0), "always": (0.1, 3.0)}
    monkeypatch.setattr(quality, "_costs", lambda settings, work, rows, form: costs[form])
    rivals = quality._rivals
    monkeypatch.setattr(quality, "_rivals", lambda settings: rivals(settings)[:1])  # the other is compiled
    main()
    table, lines = capsys.readouterr().out, json.loads((tmp_path / "out/quality.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quality.json"]
    ours, tried = ({line["name"]: line["bits_per_byte"] for line in each} for each in (lines[:2], lines[2:4]))
    assert lines[0]["steps"] == 50 and all(0 < line["bits_per_byte"] < 9 for line in lines)
    names = [*ours, *tried, min(ours, key=ours.__getitem__), min(tried, key=tried.__getitem__)]
    assert [line["name"] for line in lines] == names and all(name in table for name in names)


def test_a_loop_of_others_ends_with_its_minutes_and_leaves_a_model_of_ours(tmp_path):
    config = from_preset("tiny", vocab_size=600, max_position_embeddings=16)
    conditions = Conditions(config, torch.device("cpu"), torch.float32, is_compiled=False)
    words, store, data = (str(tmp_path / name) for name in ("tokenizer", "store", "a.jsonl"))
    small_tokenizer().save(words)
    write_lines(tmp_path / "a.jsonl", *({"text": f"Lima {n}"} for n in range(50)))
    write_store(PreparationSettings("pretrain", (data,), words, store))
    recipe, steps = Recipe("minimind's", 1e-3, 8, conditions, joins_texts=False), SimpleNamespace(value=0)
    span = time.time(), time.time() + 2
    _train(recipe, store, words, tmp_path / "out", span, 0, steps)
    assert steps.value > 0 and load_checkpoint(tmp_path / "out").model.config == config


@pytest.mark.parametrize("is_compiled, rates", [(False, (10, 5.5, 1)), (True, (0, 5.5, 1))])
def test_rates_of_others_fall_to_a_tenth_with_their_minutes(is_compiled, rates):
    conditions = Conditions(from_preset("tiny", vocab_size=300), None, torch.float32, is_compiled)
    recipe = Recipe("", 10, 8, conditions, joins_texts=True)
    assert [recipe.rate(progress) for progress in (0, 0.5, 1)] == pytest.approx(rates)


@pytest.mark.parametrize(
    "wrong", [["--minutes", "0"], ["--shares", "nan"], ["--preset", "nope"], ["--seeds", "0"]]
)
def test_minutes_that_nothing_can_reach_are_refused_before_anything_is_done(wrong, monkeypatch, tmp_path):
    flags = ["--data", "a.jsonl", "--out", str(tmp_path / "out"), *wrong]
    monkeypatch.setattr("sys.argv", ["bench", "quality", *flags])
    with pytest.raises((UserError, SystemExit)):
        main()
    assert not (tmp_path / "out").exists()


def test_an_unknown_subject_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "nothing"])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert "expected what to measure (data, decode, load, train, quality, lengths, growth, entered," in error
    assert error.endswith("agreement), got nothing\n")


def test_the_bench_of_lengths_tells_the_perplexity_of_each_part_of_long_texts(tmp_path, monkeypatch, capsys):
    save_model(tmp_path / "model", "causal", context=128)
    texts = [{"text": text * 45} for text in ("Lima. ", "法国的")] + [{"text": "The sol."}]
    data = write_lines(tmp_path / "a.jsonl", *texts)
    small_tokenizer().save(tmp_path / "tok")
    store = str(tmp_path / "store")
    write_store(PreparationSettings("pretrain", (data,), str(tmp_path / "tok"), store))
    places = ["--model", str(tmp_path / "model"), "--data", store, "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["bench", "lengths", *places, "--max_seq_len", "150"])
    main()
    found = json.loads((tmp_path / "out" / "lengths.json").read_text())
    assert [*found] == ["as it is", "linear:4", "yarn:4"] and "2 texts" in capsys.readouterr().out
    documents = TokenStore(store)
    model = load_checkpoint(tmp_path / "model").model
    ids = torch.tensor([[*map(int, documents[n].ids[:150])] for n in range(2)])
    total = model(ids, None, ids).item() / 2
    first, second, third = found["as it is"]["nats_per_token"]
    assert total == pytest.approx(first * 63 + second * 64 + third * 22, rel=1e-5)
    assert found["yarn:4"]["nats_per_token"] != found["as it is"]["nats_per_token"]


def test_an_exponent_is_the_power_of_the_length_that_figures_grow_as():
    assert exponent((10, 20, 40), (300, 1200, 4800)) == pytest.approx(2)
    assert exponent((10, 40), (5, 5)) == 0


def test_growth_is_told_by_medians_and_by_exponents_of_rounds(tmp_path):
    def turn(value, power):
        return {"s/step": 3 * value**power, "step MB": 7.0}

    values = (40, 10, 20)
    grown = Growth("rows", values, [[turn(value, power) for value in values] for power in (2, 1, 3)])
    assert grown.medians == {"s/step": [3 * 40**2, 3 * 10**2, 3 * 20**2], "step MB": [7, 7, 7]}
    assert grown.exponents["s/step"] == pytest.approx((2, 1, 3)) and grown.exponents["step MB"] == (0, 0, 0)
    head, first, *_, exponents, least, most = grown.table()
    assert head == ("rows", ["s/step", "step MB"]) and first == ("40", ["4,800", "7.00"])
    assert [line[1][0] for line in (exponents, least, most)] == ["2.00", "1.00", "3.00"]
    draw([grown], tmp_path / "growth.png")
    picture = imread(tmp_path / "growth.png")
    blue, orange = (0, 0x72, 0xB2), (0xE6, 0x9F, 0)
    assert all((np.rint(picture[..., :3] * 255) == colour).all(-1).any() for colour in (blue, orange))


def test_rows_of_several_documents_begin_each_anew_and_predict_no_beginning():
    batch = next(full_rows(2, 8, 50, documents=3))
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]] * 2
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]] * 2
    is_begin = batch.position_ids == 0
    assert (batch.labels[is_begin] == NO_TARGET).all() and (batch.labels == batch.ids)[~is_begin].all()
    batch = next(full_rows(1, 8, 50, documents=2, has_blocks=True))
    assert batch.block_ids.tolist() == [[0, 0, -1, -1, 1, 1, -1, -1]]
    assert (batch.labels != NO_TARGET).tolist() == [[False, False, True, True] * 2]


@pytest.mark.long
def test_the_bench_of_growth_measures_steps_answers_and_preparations(tmp_path, monkeypatch, capsys):
    turns = [{"role": "user", "content": "法国 1"}, {"role": "assistant", "content": "巴黎 2"}]
    data = write_lines(tmp_path / "a.jsonl", *[{"conversations": turns}] * 3)
    sizes = ["--lengths", "96", "192", "--documents", "1", "8", "--rows", "1", "--layers", "1"]
    few = ["--vocabularies", "300", "--megabytes", "1", "2", "--rounds", "1", "--new_tokens", "3"]
    places = ["--data", data, "--out", str(tmp_path / "out"), "--sliding_window", "16"]
    monkeypatch.setattr("sys.argv", ["bench", "growth", *places, *sizes, *few])
    monkeypatch.setattr("scripts.bench.growth.MEGABYTE", 2000)
    main()
    table, found = capsys.readouterr().out, json.loads((tmp_path / "out/growth.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"growth.json", "growth.png"}
    assert [*found] == ["lengths", "documents", "megabytes", "processes"] and all(
        axis in table for axis in found
    )
    for turn in found["lengths"]["turns"][0] + found["documents"]["turns"][0]:
        assert 0 < turn["masks ms"] < 1000 * turn["s/step"] and 0 < turn["masks %"] < 100
        assert turn["cache MB"] > 0 < turn["token ms"]
    middle, least, most = found["lengths"]["exponents"]["s/step"]
    assert least <= middle <= most and f"{middle:.2f}" in table
    assert [len(found[axis]["turns"][0]) for axis in ("megabytes", "processes")] == [2, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rounds", "0"],
        ["--lengths", "128", "128"],
        ["--lengths", "1", "128"],
        ["--documents", "1", "300"],
        ["--lengths", "512", "--rows", "1", "--documents", "1", "--layers", "2", "--vocabularies", "300"],
    ],
)
def test_values_by_which_nothing_can_be_measured_are_refused(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bench", "growth", "--out", str(tmp_path / "out"), *wrong])
    with pytest.raises((UserError, SystemExit)):
        main()
    assert not (tmp_path / "out").exists()
