"""A store of several machines: it is that of one, and what was done before a kill is not done again."""

# ruff: noqa: F811 - pytest finds imported fixtures by the names of parameters

from itertools import chain, islice

import pytest
from test_preparation import KilledError, chats, contents_of, settings_of, write_lines  # noqa: F401

from dataset import preparation, shares
from dataset.preparation import encode_sources, write_store
from dataset.shares import encode_share, read_share, shares_of
from dataset.tokenizer import Tokenizer
from eval.cluster import ClusterSettings
from eval.preparing import _words, write_store_by_tasks
from model.errors import UnfinishedError, UserError
from model.files import beside
from scripts import prepare_data

HERE = ClusterSettings(cluster="debug")  # submitit's executor that runs jobs in this process
CHOICE = {"validation_fraction": 0.2, "weights": (1.0, 0.5, 2.0), "num_workers": 1}


def sources_in(folder):
    records = [*chats(40), "{\n"], [*chats(60, seed=1)], [*chats(20, seed=2)]
    return [write_lines(folder / f"{name}.jsonl", each) for name, each in zip("abc", records, strict=True)]


@pytest.fixture
def by_shares(tmp_path):
    """Encodes here what tasks encode elsewhere."""

    def encode(settings, sources, request, num_done):
        each = shares_of(tmp_path / "shares", sources, request)
        for share in each:
            share.folder.mkdir(parents=True, exist_ok=True)
            encode_share(settings, share)
        return islice(chain.from_iterable(map(read_share, each)), num_done, None)

    return encode


def test_two_tasks_of_a_cluster_write_the_store_of_one_process(settings_of, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.blocks.BLOCK_BYTES", 2**22)  # which tasks have, too
    sources = sources_in(tmp_path)
    whole = settings_of(*sources, out="whole", **CHOICE)
    write_store(whole)
    line = ["prepare_data", "--kind", "sft", "--data", *sources, "--tokenizer", whole.tokenizer]
    line += ["--out", str(tmp_path / "out"), "--validation_fraction", "0.2", "--weights", "1", "0.5", "2"]
    monkeypatch.setattr("sys.argv", [*line, "--num_workers", "1", "--cluster", "local", "--tasks", "2"])
    prepare_data.main()
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")
    assert not [*tmp_path.glob(".*")]


def test_a_mistake_in_one_source_costs_no_other_its_work(settings_of, tmp_path):
    sources = sources_in(tmp_path)
    write_store(settings_of(*sources, out="whole", **CHOICE))
    records = (tmp_path / "b.jsonl").read_text()
    write_lines(tmp_path / "b.jsonl", [records, {"instruction": "a", "input": "", "output": "b"}])
    with pytest.raises(UnfinishedError, match="b.jsonl line 61.*the same command goes on"):
        write_store_by_tasks(settings_of(*sources, **CHOICE), HERE, tasks=2)
    assert len([*tmp_path.glob(".out.shares/*/blocks")]) == 2
    write_lines(tmp_path / "b.jsonl", [records])
    write_store_by_tasks(settings_of(*sources, **CHOICE), HERE, tasks=2)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_what_a_task_said_is_told_in_whatever_bytes(tmp_path):
    (tmp_path / shares.FAILED).write_bytes(b"caf\xe9 is gone\n")
    assert _words(shares.Share("a.jsonl", 1.0, "", tmp_path, ""), tmp_path) == "caf\ufffd is gone"


def test_what_stops_a_task_is_left_as_a_terminal_may_show_it(settings_of, tmp_path):
    settings = settings_of(write_lines(tmp_path / "a\x1b.jsonl", chats(1)))
    fingerprint = Tokenizer.load(settings.tokenizer).fingerprint
    share = shares.Share(*settings.data, 1.0, fingerprint, tmp_path / "share", "of another state")
    shares.encode_shares(settings, [share])
    assert "a\\x1b.jsonl changed meanwhile" in (share.folder / shares.FAILED).read_text()


def test_a_data_set_of_the_hub_is_encoded_by_tasks_only_with_its_split_named(settings_of):
    with pytest.raises(
        UserError, match="^hub:a/b: expected a split after it with --cluster, as hub:a/b:train"
    ):
        write_store_by_tasks(settings_of("hub:a/b"), HERE, tasks=2)


@pytest.mark.parametrize("owner, name", [(shares, "_write_frame"), (preparation._Output, "append")])
def test_a_kill_at_any_block_costs_no_more_than_the_block(
    settings_of, by_shares, tmp_path, monkeypatch, owner, name
):
    monkeypatch.setattr(preparation, "JOURNAL_EVERY_SECONDS", 0.0)
    sources = sources_in(tmp_path)
    write_store(settings_of(*sources, out="whole", **CHOICE))
    step, encode, calls, encoded = getattr(owner, name), preparation.Encoder.__call__, [], []

    def killed_at_times(first, *rest):
        calls.append(name)
        if len(calls) % 5 == 1:
            if name == "_write_frame":
                first.write(b"half of a frame")
            raise KilledError
        return step(first, *rest)

    def counted(self, job):
        encoded.append((job.block.source, job.block.line))
        return encode(self, job)

    monkeypatch.setattr(owner, name, killed_at_times)
    monkeypatch.setattr(preparation.Encoder, "__call__", counted)
    kills = 0
    while kills < 20:
        try:
            write_store(settings_of(*sources, **CHOICE), by_shares)
            break
        except KilledError:
            kills += 1
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")
    assert kills > 2 and len(encoded) <= len({*encoded}) + kills * (name == "_write_frame")


def test_a_share_that_is_damaged_is_made_again_and_never_cut_short(settings_of, by_shares, tmp_path):
    sources = sources_in(tmp_path)
    write_store(settings_of(*sources, out="whole", **CHOICE))
    write_store(settings_of(*sources, out="other", **CHOICE), by_shares)
    for damage in (lambda content: content[:-1], lambda content: content[:900] + b"x" + content[901:]):
        file = min(tmp_path.glob("shares/*/blocks"))
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(UnfinishedError, match="was damaged and is gone"):
            write_store(settings_of(*sources, **CHOICE), by_shares)
    write_store(settings_of(*sources, **CHOICE), by_shares)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_a_change_of_one_source_costs_no_other_its_share(settings_of, by_shares, tmp_path):
    sources = sources_in(tmp_path)
    write_store(settings_of(*sources, out="whole", **CHOICE), by_shares)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shares/*/blocks")}
    write_lines(tmp_path / "b.jsonl", chats(10, seed=3))
    write_store(settings_of(*sources, **CHOICE), by_shares)
    after = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shares/*/blocks")}
    assert len(before) == 3 and len(after) == 4 and before.items() <= after.items()


@pytest.mark.parametrize("encoding", ["by_shares", "here"])
def test_a_source_that_changed_and_is_what_it_was_again_leaves_no_trace(
    settings_of, by_shares, tmp_path, encoding
):
    sources = sources_in(tmp_path)
    write_store(settings_of(*sources, out="whole", **CHOICE))
    encode, records = (
        {"by_shares": by_shares, "here": encode_sources}[encoding],
        (tmp_path / "b.jsonl").read_text(),
    )

    def meanwhile(*inputs):
        write_lines(tmp_path / "b.jsonl", chats(10, seed=3))
        yield from encode(*inputs)

    with pytest.raises(UserError, match="b.jsonl changed"):
        write_store(settings_of(*sources, **CHOICE), meanwhile)
    (tmp_path / "b.jsonl").write_text(records)
    write_store(settings_of(*sources, **CHOICE), encode)
    assert contents_of(tmp_path / "out") == contents_of(tmp_path / "whole")


def test_another_tokenizer_than_the_stores_stops_a_share(settings_of, tmp_path):
    settings = settings_of(*sources_in(tmp_path))
    share = shares.Share(settings.data[0], 1.0, "another", tmp_path / "share", "")
    share.folder.mkdir()
    with pytest.raises(UserError, match="changed meanwhile"):
        encode_share(settings, share)
    assert not share.blocks.exists() and not beside(share.blocks, "partial").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks", "2"], "--tasks changes nothing without --cluster"),
        (["--cluster", "local"], "--cluster local needs --tasks: expected 1 or more, got 0"),
        (["--partition", "cpu"], "--partition changes nothing without --cluster slurm"),
    ],
)
def test_settings_of_a_cluster_that_do_nothing_are_refused(monkeypatch, capsys, flags, message):
    required = ["--kind", "sft", "--data", "a.jsonl", "--tokenizer", "tok", "--out", "out"]
    monkeypatch.setattr("sys.argv", ["prepare_data", *required, *flags])
    with pytest.raises(SystemExit):
        prepare_data.main()
    assert message in capsys.readouterr().err
