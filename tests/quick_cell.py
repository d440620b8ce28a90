"""A command in the form of the project's, quick enough to be run dozens of times: it draws scores."""

import json
import random
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class QuickSettings:
    """What it draws."""

    out: str
    """folder to write"""
    model: str = ""
    """folder of a cell that it needs"""
    gain: float = 0.0
    """added to every score"""
    seed: int = 0
    """of the scores"""
    items: int = 20
    """that are scored"""
    prompt_mask: str = "causal"
    """stands for a mask"""
    seconds: float = 0.0
    """to sleep"""
    fails: bool = False
    """whether it ends with an error"""
    diverges: bool = False
    """whether its first score is no number"""
    data: str = "hub:same"
    """stands for what was trained on"""
    noted: str = ""
    """what it notes of its data, twice"""


def settings_of(words: list[str]) -> QuickSettings:
    """Read `--name=value`, which takes a tenth of the time in which the project's parser is imported."""
    kinds = {field.name: field.type for field in fields(QuickSettings)}
    given = (word.removeprefix("--").split("=", 1) for word in words)
    return QuickSettings(**{key: value if kinds[key] is str else json.loads(value) for key, value in given})


def main() -> None:
    """Write what a training and an evaluation leave."""
    settings = settings_of(sys.argv[1:])
    if settings.model:
        assert (Path(settings.model) / "items.json").exists()
    print(f"note: {settings.noted}\nstep 1\nnote: {settings.noted}" if settings.noted else "step 1")
    time.sleep(settings.seconds)
    if settings.fails:
        sys.exit("error: it was told to fail")
    chance, out = random.Random(settings.seed), Path(settings.out)
    scores = [round(chance.gauss(0, 1) + settings.gain, 6) for _ in range(settings.items)]
    if settings.diverges:
        scores[0] = float("nan")
    out.mkdir(parents=True, exist_ok=True)
    with open(out.parent / "begun", "a") as file:
        file.write("begun\n")
    tasks = {"task": {"clusters": list(range(settings.items)), "metrics": {"log_likelihood": scores}}}
    (out / "items.json").write_text(
        json.dumps({"tasks": tasks, "losses": {"store": {"nats_per_token": 1.5}}})
    )
    proof = {"initial_weights": str(settings.seed), "rows": settings.data, "targets": "same"}
    counts = {"flops": 1e9, "tokens": 1000, "seconds": 1.0, "parameters": 10}
    (out / "summary.json").write_text(json.dumps({"proof": proof, **counts}))
    (out / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')


if __name__ == "__main__":
    main()
