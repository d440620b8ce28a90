"""Count what conversations run through to their loss: python -m scripts.bench entered --out out/bench"""

import inspect
import json
import sys
import threading
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.bench.measuring import BenchSettings, Figures, bench, call

ROOT = Path(__file__).parents[2]
CORE = (
    *("model/strategies.py", "model/masks.py", "model/attention.py", "model/transformer.py", "model/loss.py"),
    *("model/kv_cache.py", "model/generator.py", "dataset/conversation.py", "dataset/packing.py"),
    *("dataset/batches.py", "trainer/loop.py", "trainer/sft.py"),
)
"""the files that are read first, in this order; all others that are entered are called infrastructure"""
FOLDERS = tuple(f"{ROOT / name}/" for name in ("model", "dataset", "trainer")) + (str(ROOT / "scripts/prep"),)
CONVERSATIONS = 200
FLAGS = {"init": "fresh", "max_steps": 1, "max_seq_len": 64, "batch_size": 2}


def main() -> None:
    """Prepare a few conversations and train a step on them, and say which functions that took."""
    bench(BenchSettings, "Count the functions from a conversation to its loss.", _find)


def _find(settings: BenchSettings, work: Path) -> Figures:
    said = ({"user": f"What is {n} plus one?", "assistant": str(n + 1)} for n in range(CONVERSATIONS))
    turns = ([{"role": role, "content": text} for role, text in each.items()] for each in said)
    data = work / "chats.jsonl"
    data.write_text("".join(json.dumps({"conversations": each}) + "\n" for each in turns))
    tokenizer, store = work / "tokenizer", work / "store"
    call("scripts.train_tokenizer", data=data, vocab_size=settings.vocab_size, out=tokenizer)

    spy = Spy()
    flags = {"kind": "sft", "data": data, "tokenizer": tokenizer, "out": store, "num_workers": 1}
    spy.follow("scripts.prepare_data", flags)
    spy.follow("trainer.sft", {"data": store, "out": work / "run"} | FLAGS)
    functions = {
        file: [name for _, name in names] for file, names in groupby(sorted(spy.entered), itemgetter(0))
    }
    core = {file: functions[file] for file in CORE if file in functions}
    others = {file: names for file, names in functions.items() if file not in core}
    rows = [*_counted("the reading core", core), *_counted("infrastructure", others)]
    rows.append(_counted("in all", functions)[0])
    return Figures({"core": core, "others": others}, ("files", "functions"), rows)


def _counted(name: str, functions: dict[str, list[str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the lines of some files, the sum of them first."""
    head = (name, (str(len(functions)), str(sum(map(len, functions.values())))))
    return [head, *((f"  {file}", ("", str(len(names)))) for file, names in functions.items())]


class Spy:
    """Notes which functions of the project are entered, until the first loss is there."""

    def __init__(self) -> None:
        """Begin with none."""
        from model.loss import summed_cross_entropy

        self.entered: set[tuple[str, str]] = set()
        """file and name of what `def` begins; what has no name, such as a lambda, is a part of it"""
        self._last, self._is_over = summed_cross_entropy.__code__, False

    def follow(self, module: str, flags: dict[str, Any]) -> None:
        """Run a command in this process, in all of its threads under watch."""
        main = import_module(module).main
        sys.argv = [module, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            main()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call; the bodies of modules and classes are no functions."""
        code = frame.f_code
        self._is_over |= event == "return" and code is self._last
        is_function = event == "call" and code.co_flags & inspect.CO_OPTIMIZED
        if is_function and not self._is_over and code.co_filename.startswith(FOLDERS):
            file = str(Path(code.co_filename).relative_to(ROOT))
            name = code.co_qualname.partition(".<locals>.<")[0]
            if not name.endswith(">"):
                self.entered.add((file, name))
