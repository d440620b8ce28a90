"""Train a byte-level BPE tokenizer: python -m scripts.train_tokenizer --data a.jsonl b.txt --out tokenizer"""

import sys

if not __package__:
    print("error: run python -m scripts.train_tokenizer from the repository root", file=sys.stderr)
    sys.exit(2)

import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dataset.blocks import form_of
from dataset.command_line import parse, run
from dataset.messages import shown
from dataset.printing import NOTE, printable
from dataset.sources import describe_source
from dataset.text_files import counts
from dataset.tokenizer import FILES, Tokenizer, train_tokenizer
from dataset.tokenizer_sample import Sample, Texts, TokenizerSettings
from model.errors import UserError
from model.files import check_free, read_object, whole_folder, write_json

SMALLEST_SHARE = 0.01  # of the text that is measured: of a language with less the rate would say nothing
REQUEST = "request.json"
UNDECIDING = ("data", "out", "compare", "max_reject_fraction", "overwrite")


def main() -> None:
    """Train the tokenizer that the command line asks for and print what it makes of text it has not seen."""
    settings = parse(TokenizerSettings, "Train a byte-level BPE tokenizer on text or chat files.")
    sample = Sample(settings)
    others = {name: Tokenizer.load(name) for name in settings.compare if not name.isdecimal()}
    if (told := _finished(settings, sample.sources)) is not None:
        _say(settings, "trained already, nothing to do", told)
        if not settings.compare:
            return
        tokenizer = Tokenizer.load(settings.out)
        deque(sample.texts(), maxlen=0)  # which holds some out
    else:
        tokenizer = _write(settings, sample)
    held_out = sample.held_out
    others |= {name: _train(sample, settings, int(name)) for name in settings.compare if name.isdecimal()}
    print_report({settings.out: tokenizer} | others, held_out)


def _write(settings: TokenizerSettings, sample: Sample) -> Tokenizer:
    replaces = settings.overwrite and is_tokenizer(settings.out)
    check_free(settings.out, replaces)
    started, request = time.monotonic(), _request(settings, sample.sources)
    tokenizer = _train(sample, settings, settings.vocab_size)
    told = [*_told(sample, settings.max_bytes)]
    with whole_folder(settings.out, replaces) as folder:
        tokenizer.save(folder)
        write_json(folder / REQUEST, request | {"told": told})
    size = f"{tokenizer.vocab_size:,} tokens, {time.monotonic() - started:.1f} s"
    _say(settings, size, told)
    return tokenizer


def _say(settings: TokenizerSettings, what: str, told: Iterable[str]) -> None:
    print("\n".join((f"{printable(settings.out)}: {what}", *(NOTE + line for line in told))))


def _told(sample: Sample, max_bytes: int) -> Iterator[str]:
    """Yield lines that say what of the data was not trained on."""
    if sample.is_drawn:
        yield f"drawn by --max_bytes: {sample.taken_bytes:,} of {sample.read_bytes:,} bytes of text"
    if sample.unread:
        reached, *after = sample.unread
        more = f" and {len(after):,} files after it" if after else ""
        yield f"not read, as --max_bytes {max_bytes:,} was reached: the end of {printable(reached)}{more}"
    if sample.rejects:
        reasons = "; ".join(f"{count:,} {printable(reason)}" for reason, count in sample.rejects.items())
        yield f"of {sample.records:,} records not used: {reasons}"
    if sample.unread_keys:
        yield f"keys not read: {shown(sorted(sample.unread_keys), most=20)}"
    if sample.marks.found:
        yield f"marks in texts, not trained on: {counts(sample.marks.found)}"


def _train(sample: Sample, settings: TokenizerSettings, vocab_size: int) -> Tokenizer:
    def texts() -> Iterator[str]:
        yield from sample.texts()
        print("merging", file=sys.stderr)

    return train_tokenizer(texts(), vocab_size, settings.isolate_han, settings.prompt_copies)


def is_tokenizer(path: str | Path) -> bool:
    """Say whether a folder holds a tokenizer and nothing else."""
    return Path(path).is_dir() and {file.name for file in Path(path).iterdir()} - {REQUEST} == set(FILES)


def _request(settings: TokenizerSettings, sources: list[str]) -> dict[str, Any]:
    """Return all that decides which tokenizer is trained."""
    digests = [described["sha256"] for described in map(describe_source, sources)]
    told = {"sources": digests, "file_endings": [*map(form_of, sources)]}
    return {name: value for name, value in vars(settings).items() if name not in UNDECIDING} | told


def _finished(settings: TokenizerSettings, sources: list[str]) -> list[str] | None:
    """Return what was told of this very tokenizer if it lies at `out`; raises `UserError` for another one."""
    path = Path(settings.out) / REQUEST
    if settings.overwrite or not (is_tokenizer(settings.out) and path.is_file()):
        return None
    request = _request(settings, sources)
    former = {"prompt_copies": 1, "file_endings": request["file_endings"]}  # of what older ones do not tell
    written = former | read_object(path, "--overwrite the tokenizer")
    if differing := [name for name in request if written.get(name) != request[name]]:
        fault = f"--out {settings.out} exists already, trained with other {', '.join(differing)}"
        raise UserError(f"{fault}; choose another, or --overwrite it")
    return [printable(str(line)) for line in written.get("told") or ()]


def print_report(tokenizers: dict[str, Tokenizer], texts_of_language: Texts) -> None:
    """Print bytes per token: a line for each tokenizer, a column for each language with enough text."""
    title = "bytes per token on text that was not trained on"
    if not texts_of_language:
        print(f"{title}: too few different documents to hold one out")
        return
    sizes = {language: sum(len(text.encode()) for text in ts) for language, ts in texts_of_language.items()}
    columns = {language: f"{language} ({size:,} B)" for language, size in sizes.items()}
    few = [columns.pop(each) for each, size in sizes.items() if size < SMALLEST_SHARE * sum(sizes.values())]
    print(f"{title}; too little of {', '.join(few)}" if few else title)
    print(f"  {'tokenizer':<32}{'tokens':>9}" + "".join(f"{column:>20}" for column in columns.values()))
    for name, tokenizer in tokenizers.items():
        counts = {each: sum(map(len, map(tokenizer.encode, texts_of_language[each]))) for each in columns}
        rates = [f"{sizes[each] / max(count, 1):>20.2f}" for each, count in counts.items()]
        print(f"  {printable(name):<32}{tokenizer.vocab_size:>9,}" + "".join(rates))


if __name__ == "__main__":
    run(main)
