"""Results of an experiment that was never run, for tests of its report."""

import math
import random
from typing import Any
from zlib import crc32

HOSTILE = '<script>alert("x")</script>\x1b[2J\u202e & `code` | _it_ ![i](http://127.0.0.1:9/i.png)'
TASKS = ("stories_context_first", "facts_unseen_wording", "reverse", "阅读理解")
METRICS = {"log_likelihood": "nats", "exact_match": "points"}


def pretend_results(arms: int = 2, tasks: int = 4, seeds: int = 8, hostile: str = HOSTILE) -> dict[str, Any]:
    """Results with so many arms, the baseline included; `hostile` stands in every foreign text."""
    luck = random.Random(0)
    names = [
        "causal",
        "prefix",
        *(f"grid_arm_{n}_with_a_rather_long_name_of_settings" for n in range(2, arms)),
    ][:arms]
    splits = [TASKS[n] if n < len(TASKS) else f"generated_reasoning_task_number_{n}" for n in range(tasks)]
    cells = [(task, metric) for metric in METRICS for task in splits]
    return {
        "experiment": {
            "name": f"prefix_or_causal {hostile}",
            "question": f"Does a prefix mask help a small model to read? 前缀有用吗? {hostile}",
            "hash": "5e1f00d5",
            "command": "python -m scripts.ablate --config configs/ablation/masks.yaml --out out/masks",
            "seeds": list(range(seeds)),
            "notes": [f"sft, 2 of 4 cells: documents shortened 3{hostile}"],
            "decision": {"alpha": 0.05, "alpha_of_look": 0.05, "equivalence": 0.02, "looks": []},
            "primary": {"task": TASKS[0], "metric": "log_likelihood"},
            "tuned": {name: {"sft.learning_rate": 0.001} for name in names},
        },
        "answer": f"prefix read better by 0.0432 nats (0.0123 to 0.0741; 8 seeds, 1,000 items). {hostile}",
        "arms": [_arm(name, n, hostile) for n, name in enumerate(names)],
        "comparisons": [
            _comparison(luck, *cell, names[0], arm, seeds, cell == cells[0])
            for cell in cells
            for arm in names[1:]
        ],
        "a_a": [_comparison(luck, *cell, names[0], "A/A", seeds, False) for cell in cells],
        "scores": [_score(luck, *cell, arm, seeds) for cell in cells for arm in names],
        "curves": [
            _curve(stage, arm, n, seeds) for stage in ("pretrain", "sft") for n, arm in enumerate(names)
        ],
        "disagreements": [
            {
                "task": TASKS[0],
                "question": f"小明在厨房里。他走到花园。\nWhere is 小明? {hostile}",
                "expected": ["花园", "garden"],
                "answers": {arm: f"the garden {hostile}" if n % 2 else "厨房" for n, arm in enumerate(names)},
            }
        ],
        "cells": [
            _cell(stage, arm, seed, hostile)
            for stage in ("sft", "answers")
            for arm in names
            for seed in range(seeds)
        ],
        "tuning": {
            "tried": [
                {
                    "arm": name,
                    "settings": {"sft.learning_rate": rate},
                    "score": -0.5 - rate,
                    "cells": ["7ab1e"],
                }
                for name in names
                for rate in (0.001, 0.002)
            ],
            "cells": [_cell("sft", name, 20_000, hostile) for name in names],
        },
        "machine": "two cores",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0"},
        "devices": ["CPU with 1 threads"],
        "statistics": {"scipy": "1.17.0"},
    }


def _arm(name: str, n: int, hostile: str) -> dict[str, Any]:
    labels = ["[user]", "法国", "的", "首都", f"?{hostile[:12]}", "[assistant]", "巴黎", "[end]"] * 5
    sees = [[j <= i or (n > 0 and j < 25) for j in range(40)] for i in range(40)]
    weights = [[round(1 / sum(row), 3) if seen else 0.0 for seen in row] for row in sees]
    return {
        "name": name,
        "named": {"sft.prompt_mask": "prefix", "sft.note": hostile} if n else {},
        "cost": {"flops": 1.234e15, "tokens": 4.1e6, "seconds": 251.3, "parameters": 1234567},
        "proof": {"sft": {"initial_weights": "equal", "rows": "equal", "targets": "equal"}},
        "against": "causal",
        "differs_because": [f"sft.prompt_mask {hostile}"] if n else [],
        "mask": {
            "title": "prefix" if n else "causal",
            "labels": labels,
            "rows": ["".join("01"[seen] for seen in row) for row in sees],
        },
        "attention": [{"layer": layer, "labels": labels, "weights": weights} for layer in range(2)],
    }


def _comparison(
    luck: random.Random, task: str, metric: str, baseline: str, arm: str, seeds: int, is_primary: bool
) -> dict[str, Any]:
    difference = 0.0432 if is_primary else luck.gauss(0, 0.03)
    wide = 0.0309 if is_primary else luck.uniform(0.01, 0.05)
    return {
        "task": task,
        "metric": metric,
        "unit": METRICS[metric],
        "is_primary": is_primary,
        "baseline": baseline,
        "arm": arm,
        "tuned_apart": "",
        "seeds": seeds,
        "items": 1000,
        "clusters": 200,
        "baseline_mean": -0.5123,
        "arm_mean": -0.5123 + difference,
        "difference": difference,
        "interval": [difference - wide, difference + wide] if seeds > 1 else None,
        "p_value": 0.0234 if seeds > 1 else None,
        "p_holm": 0.0468 if seeds > 1 else None,
        "effect_size": difference / 0.037 if seeds > 1 else None,
        "seed_spread": 0.037 if seeds > 1 else None,
        "item_interval": [difference - 0.011, difference + 0.011],
        "smallest_visible": 0.0457 if seeds > 1 else None,
        "equivalence_p": 0.81 if seeds > 1 else None,
        "verdict": "higher" if difference > wide else "not shown",
    }


def _score(luck: random.Random, task: str, metric: str, arm: str, seeds: int) -> dict[str, Any]:
    mean = -0.5 if metric == "log_likelihood" else luck.uniform(0.4, 0.99)
    interval = [mean - 0.02, mean + 0.02] if seeds > 1 else None
    return {
        "task": task,
        "metric": metric,
        "unit": METRICS[metric],
        "arm": arm,
        "mean": mean,
        "interval": interval,
        "seeds": seeds,
        "items": 1000,
    }


def _curve(stage: str, arm: str, n: int, seeds: int) -> dict[str, Any]:
    steps = list(range(20, 1620, 20))
    mean = [0.2 + 0.02 * n + 7 * math.exp(-step / 200) for step in steps]
    band = {"low": [value * 0.95 for value in mean], "high": [value * 1.05 for value in mean]}
    return {"stage": stage, "arm": arm, "steps": steps, "mean": mean, **band, "seeds": seeds}


def _cell(stage: str, arm: str, seed: int, hostile: str) -> dict[str, Any]:
    failed = seed == 1 and stage == "answers"
    return {
        "address": f"{crc32(f'{stage} {arm} {seed}'.encode()):08x}",
        "stage": stage,
        "arms": [arm],
        "seed": seed,
        "status": "failed" if failed else "finished",
        "seconds": None if failed else 45.6,
        "commit": "8016eae",
        "command": f"python -m trainer.{stage} --init '@pretrain' --seed {seed} --note '{hostile}'",
        "threads": 1,
        "error": f"the disk is full {hostile}" if failed else None,
    }
