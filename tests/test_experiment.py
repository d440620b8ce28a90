"""Experiments: what their files may say, the cells that they plan, and what makes two of them one."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml

from eval.cells import plan
from eval.experiment import A_A, load_experiment
from eval.verdicts import sentence
from model.errors import UserError

EXPERIMENTS = sorted(map(str, Path("configs/ablation").glob("*.yaml")))
STAGES = {
    "world": {"run": "build_world", "scale": "smoke"},
    "tokenizer": {"run": "train_tokenizer", "data": ["@world/pretrain.jsonl"], "vocab_size": 600},
    "chats": {"run": "prepare_data", "kind": "sft", "data": ["@world/sft.jsonl"], "tokenizer": "@tokenizer"},
    "first": {"run": "sft", "init": "fresh", "data": ["@chats"], "max_steps": 2},
    "second": {"run": "sft", "init": "@first", "data": ["@chats"], "max_steps": 2},
    "scores": {"run": "evaluate", "model": "@second", "data": ["@world/eval/reverse.jsonl"]},
}
ARMS = {"causal": {}, "prefix": {"second.prompt_mask": "prefix"}}


def load(folder: Path, **changes):
    content = {"question": "Which?", "stages": STAGES, "arms": ARMS, "primary": {"task": "reverse"}}
    content = {key: value for key, value in (content | changes).items() if value is not None}
    file = folder / "which.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_experiment(str(file))


def addresses(trials) -> dict[tuple[str, int], dict[str, str]]:
    return {(t.arm, t.seed): {stage: cell.address for stage, cell in t.cells.items()} for t in trials}


def test_arms_share_every_cell_up_to_the_first_that_they_name(tmp_path):
    found = addresses(plan(load(tmp_path), range(2), {}))
    one, other = found["causal", 0], found["prefix", 0]
    shared = ("world", "tokenizer", "chats", "first")
    assert all(one[stage] == other[stage] for stage in shared)
    assert all(one[stage] != other[stage] for stage in ("second", "scores"))


def test_seeds_share_the_data_and_no_training_and_the_a_a_arm_shares_none_with_any(tmp_path):
    found = addresses(plan(load(tmp_path), range(2), {}))
    assert len({each["chats"] for each in found.values()}) == 1
    firsts = {key: each["first"] for key, each in found.items()}
    assert firsts["causal", 0] == firsts["prefix", 0] != firsts["causal", 1] == firsts["prefix", 1]
    assert {firsts[A_A, 0], firsts[A_A, 1]}.isdisjoint({firsts["causal", 0], firsts["causal", 1]})


def test_a_training_whose_seed_is_named_serves_every_seed(tmp_path):
    stages = STAGES | {"first": STAGES["first"] | {"seed": 7}}
    found = addresses(plan(load(tmp_path, stages=stages), range(2), {}))
    assert len({each["first"] for each in found.values()}) == 1
    assert found["causal", 0]["second"] != found["causal", 1]["second"]


def test_one_seed_has_no_a_a_arm(tmp_path):
    assert {trial.arm for trial in plan(load(tmp_path), range(1), {})} == {"causal", "prefix"}


def test_an_address_changes_with_what_decides_and_with_nothing_else(tmp_path):
    def of(stage: str, **settings) -> str:
        stages = STAGES | {stage: STAGES[stage] | settings}
        return plan(load(tmp_path, stages=stages), range(1), {})[0].cells[stage].address

    former = of("second")
    assert of("second", batch_size=16) == former, "what a default says anyway"
    assert of("chats", num_workers=1) == of("chats")
    assert of("second", batch_size=8) != former
    assert of("second", optimizer={"learning_rate": 2e-3}) != former


def test_the_content_of_a_file_decides_not_its_name(tmp_path):
    def address(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        stages = STAGES | {"scores": STAGES["scores"] | {"data": [str(tmp_path / name)]}}
        return plan(load(tmp_path, stages=stages), range(1), {})[0].cells["scores"].address

    assert address("a.jsonl", "one") == address("b.jsonl", "one") != address("a2.jsonl", "two")


def test_how_a_file_is_read_decides_and_so_do_names_in_a_folder(tmp_path):
    def address(name: str, data: Path) -> str:
        (file := tmp_path / name).parent.mkdir(exist_ok=True)
        file.write_text('{"text": "one"}')
        stages = STAGES | {"chats": STAGES["chats"] | {"data": [str(data)]}}
        return plan(load(tmp_path, stages=stages), range(1), {})[0].cells["chats"].address

    one, other = tmp_path / "a.txt", tmp_path / "a.jsonl"
    assert address("a.txt", one) != address("a.jsonl", other)
    assert address("1/a.jsonl", tmp_path / "1") != address("2/b.jsonl", tmp_path / "2")


def test_a_number_of_documents_is_no_file(tmp_path):
    built = {"run": "build_task", "task": "lookup", "validation": 5, "train": 50}
    stages = {"built": built} | STAGES
    stages["chats"] = STAGES["chats"] | {"data": ["@built/train.jsonl"]}
    assert plan(load(tmp_path, stages=stages), range(1), {})[0].cells["built"].settings["validation"] == 5


def test_a_recipe_counts_by_what_it_says(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("batch_size: 8\n")
    by_recipe = STAGES | {"second": STAGES["second"] | {"config": str(recipe)}}
    by_hand = STAGES | {"second": STAGES["second"] | {"batch_size": 8}}
    one, other = (plan(load(tmp_path, stages=each), range(1), {})[0] for each in (by_recipe, by_hand))
    assert one.cells["second"].address == other.cells["second"].address


def test_null_gives_a_setting_of_the_recipe_its_default_back(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("batch_size: 8\noptimizer: {name: muon}\n")
    second = STAGES["second"] | {"config": str(recipe)}
    null = dict.fromkeys(["batch_size", "optimizer.name", "seed"])
    plain, taken_back = (
        plan(load(tmp_path, stages=STAGES | {"second": each}), range(1), {})[0].cells["second"].address
        for each in (STAGES["second"], second | null)
    )
    assert taken_back == plain


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path):
    cell = plan(load(tmp_path), range(1), {})[0].cells["scores"]
    for name in ("work[1]", "work1"):
        (folder := tmp_path / name / "world-1/world").mkdir(parents=True)
        (folder / "a.jsonl").touch()
    for data in ("@world-1/*.jsonl", "@world-1/a.jsonl"):
        asked = replace(cell, settings=cell.settings | {"data": [data]})
        words = asked.words(tmp_path / "work[1]", uses_gpu=False)
        assert f"--data={tmp_path}/work[1]/world-1/world/a.jsonl" in words


def test_a_served_mask_is_allowed_where_it_is_foreign_and_unnamed_where_it_is_the_models_own(tmp_path):
    grid = {"second.prompt_mask": ["causal", "prefix"], "scores.prompt_mask": ["causal", "prefix"]}
    found = {t.arm: t.cells["scores"] for t in plan(load(tmp_path, arms=None, grid=grid), range(1), {})}
    assert list(found) == ["causal/causal", "causal/prefix", "prefix/causal", "prefix/prefix"]
    own, foreign = found["prefix/prefix"].settings, found["prefix/causal"].settings
    assert own["prompt_mask"] is None and own["allow_mask_mismatch"] is False
    assert foreign["prompt_mask"] == "causal" and foreign["allow_mask_mismatch"] is True
    assert len({cell.address for cell in found.values()}) == 4


def test_an_arm_without_use_for_a_stage_does_not_run_it(tmp_path):
    arms = ARMS | {"fresh": {"second.init": "fresh"}}
    found = {t.arm: t.cells for t in plan(load(tmp_path, arms=arms), range(1), {})}
    assert "first" in found["causal"] and "first" not in found["fresh"]


def test_the_hash_is_that_of_what_the_file_says(tmp_path):
    former = load(tmp_path).hash
    (tmp_path / "other").mkdir()
    assert load(tmp_path / "other", seeds=8).hash == former, "8 is the default"
    assert load(tmp_path, seeds=9).hash != former
    assert load(tmp_path, primary={"task": "followup"}).hash != former


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"arms": {"one": {}}}, "arms: expected two or more"),
        ({"arms": None}, "expected arms or a grid, got neither"),
        (
            {"arms": {"a": {}, "b": {"third.seed": 1}}},
            "third.seed: expected stage.setting with a stage of world",
        ),
        (
            {"arms": {"a": {}, "b": {"second.prompt_msk": "prefix"}}},
            "arm b, stage second: unknown setting prompt_msk",
        ),
        (
            {"arms": {"a": {}, "b": {"second.prompt_mask": "all"}}},
            "stage second: --prompt_mask: expected one of",
        ),
        (
            {"arms": {"a": {}, "b": {"second.data": ["@nothing"]}}},
            "@nothing: expected @ and an earlier stage",
        ),
        ({"arms": {"a": {}, "b": {"second.run": "train"}}}, "run: expected one of build_world"),
        ({"arms": {"a": {}, "A/A": {}}}, "A/A is the name of the baseline"),
        ({"seeds": 0}, "seeds: expected 1 to"),
        ({"seeds": "many"}, "which.yaml.seeds: expected int"),
        ({"decision": {"looks": [16, 8]}, "seeds": 16}, "decision.looks: expected rising numbers"),
        ({"contrasts": [["prefix", "segment"]]}, "contrasts: expected pairs of different arms"),
        ({"primary": None}, "primary is missing"),
        (
            {"arms": {"a/b": {}, "a-b": {"second.prompt_mask": "prefix"}}, "links": ["second"]},
            "links: second-a-b would name several folders; rename a stage or an arm",
        ),
        (
            {"stages": STAGES | {"work": {**STAGES["world"]}}, "links": ["work"]},
            "links: work would name several",
        ),
        (
            {"arms": {"a": {}, "b" * 300: {"second.prompt_mask": "prefix"}}, "links": ["second"]},
            "links: expected names of up to 255 bytes, got 'second-bbb",
        ),
        ({"tune": {"second.batch_size": []}}, "tune: second.batch_size: expected values, got none"),
        (
            {"stages": STAGES | {"second": STAGES["second"] | {"out": "mine"}}},
            "stage second: out: each cell has a folder of its own",
        ),
        (
            {"stages": STAGES | {"idle": {**STAGES["world"]}}, "arms": {"a": {}, "b": {"idle.seed": 3}}},
            "arm b: idle.seed changes nothing, as nothing that is measured uses that stage",
        ),
        ({"decision": {"equivalence": -0.5}}, "decision.equivalence: expected more than 0"),
        ({"tune": {"second.batch_size": [8]}, "tuning_seed": 1}, "tuning_seed: expected one that no arm"),
        ({"tune": {"second.prompt_mask": ["prefix"]}}, "tune: arm prefix names second.prompt_mask itself"),
        ({"arms": {"a": {}, "b": {"second.batch_size": None}}}, "arms b and a do the same"),
        ({"arms": {"a": {}, "b": {"second.numworkers": None}}}, "unknown setting numworkers"),
        ({"arms": {"a": {}, "b": {"second.data": None}}}, "--data: expected one or more of str, got None"),
        (
            {"stages": STAGES | {name: STAGES[name] | {"seed": 1} for name in ("first", "second")}},
            "arm causal: expected trainings that take the seed",
        ),
        ({"arms": {True: {}, "True": {}, "a": {}}}, "which.yaml: arms: expected texts as names, got True"),
        ({"stages": STAGES | {1: {"run": "sft"}}}, "stages: expected texts as names, got 1; write it in"),
        ({"prmary": {"task": "x"}}, "unknown key prmary"),
        ({"decision": {1: 2, "alpa": 3}}, "unknown key 1"),
        ({"question": date(2024, 1, 1)}, "which.yaml: Object of type date is not JSON serializable; write a"),
        ({"seeds": date(2024, 1, 1)}, "not JSON serializable"),
        ({"arms": {"a": {}, "b": {"second.seed": {1, 2}}}}, "Object of type set is not JSON serializable"),
        ({"arms": {"a": {}, "b": {"second.run": ["sft"]}}}, "run: expected one of build_world"),
        ({"arms": {"a": {}, "b": {"second.config": 3}}}, "--config: cannot read 3: No such file"),
        ({"stages": STAGES | {"scores": STAGES["scores"] | {"model": ["x"]}}}, "--model: expected str"),
        (
            {"arms": {"a": {}, "b": {"second.seed": 1, "second": {"seed": 2}}}},
            "which.yaml: arms: second.seed stands twice; keep one of them",
        ),
        (
            {"arms": None, "grid": {"second.seed": [1, 2, 1]}},
            "grid: expected arms with names of their own, got 1, 2 for several",
        ),
        (
            {"stages": {"world": {"run": "build_world"}}, "arms": {"a": {}, "b": {"world.seed": 1}}},
            "one that measures",
        ),
        (
            {"stages": STAGES | {"scores": STAGES["scores"] | {"data": ["gone.jsonl"]}}},
            "gone.jsonl: expected a file",
        ),
    ],
)
def test_what_makes_no_experiment_is_named_before_anything_runs(tmp_path, changes, words):
    with pytest.raises(UserError, match=None) as caught:
        plan(load(tmp_path, **changes), range(2), {})
    assert words in str(caught.value)


def test_stages_are_handed_down_through_files_and_never_in_a_circle(tmp_path):
    load(tmp_path)
    for name, base, steps in (("one", "which", 3), ("two", "one", 4)):
        changed = {"stages_of": str(tmp_path / f"{base}.yaml"), "stages": {"second": {"max_steps": steps}}}
        content = {"question": "Which?", "arms": ARMS, "primary": {"task": "reverse"}} | changed
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    stages = load_experiment(str(tmp_path / "two.yaml")).stages
    assert stages == STAGES | {"second": STAGES["second"] | {"max_steps": 4}}
    (tmp_path / "which.yaml").write_text(yaml.safe_dump({"stages_of": str(tmp_path / "two.yaml")}))
    with pytest.raises(UserError, match="expected a file that does not begin with this one"):
        load_experiment(str(tmp_path / "two.yaml"))


@pytest.mark.parametrize(
    "file", [*EXPERIMENTS, "configs/quickstart/quickstart.yaml", "configs/quickstart/smoke.yaml"]
)
def test_every_experiment_of_the_project_can_be_planned(file, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    (tmp_path / "data").mkdir()
    for name in ("babi_train.jsonl", "babi.jsonl"):  # which users bring themselves
        (tmp_path / "data" / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(str(file))
    trials = plan(experiment, range(experiment.seeds), {})
    assert len(trials) == experiment.seeds * (len(experiment.named) + (experiment.seeds > 1))


@pytest.mark.parametrize("decision", [[8], None, "soon"])
def test_a_rule_of_another_type_is_one_line_also_where_the_seeds_are_given(tmp_path, decision):
    load(tmp_path)
    file = tmp_path / "which.yaml"
    file.write_text(file.read_text() + yaml.safe_dump({"decision": decision}))
    with pytest.raises(UserError, match="which.yaml.decision: expected an object"):
        load_experiment(str(file), seeds=3)


def test_looks_that_a_number_of_seeds_replaces_are_told(tmp_path, capsys):
    load(tmp_path, seeds=16, decision={"looks": [8, 16]})
    experiment = load_experiment(str(tmp_path / "which.yaml"), seeds=4)
    assert experiment.looks == (4,)
    assert capsys.readouterr().err.startswith("--seeds 4: decided once, after all of them, not by the looks")


def test_a_claim_whose_interval_holds_0_says_so(tmp_path):
    effect = {"arm": "b", "baseline": "a", "unit": "nats", "metric": "log_likelihood", "task": "reverse"}
    effect |= {"difference": 0.5, "interval": [-0.1, 1.1], "alpha": 0.05, "p_holm": 0.03, "seeds": 8}
    effect |= {"items": 9, "items_left_out": 0, "tuned_apart": "", "verdict": "higher"}
    assert "by +0.5 nats, though its interval holds 0 (95% interval" in sentence(effect, load(tmp_path))
    assert "by +0.5 nats (95%" in sentence(effect | {"interval": [0.1, 0.9]}, load(tmp_path))
