"""`scripts.show_batch`: what it prints and draws is the very row of the training."""

import json

import pytest

from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.conversation import ROLES
from dataset.documents import documents_of
from dataset.preparation import PreparationSettings, write_store
from dataset.token_store import TokenStore
from eval.plots import draw_mask
from model.masks import visible_mask
from scripts.show_batch import main
from tests.conftest import FOR_TEXTS, STRATEGIES
from tests.serving import small_tokenizer

TURNS = (
    ("user", "法国的首都？"),
    ("assistant", "巴黎。"),
    ("user", "And its currency?"),
    ("assistant", "欧元"),
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A folder with the stores sft/ and pretrain/."""
    folder = tmp_path_factory.mktemp("stores")
    small_tokenizer().save(folder / "tokenizer")
    chats = [TURNS, TURNS[:2], (("system", "Be brief."), *TURNS[2:]), TURNS[:2]]
    lines = {
        "sft": [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in chats],
        "pretrain": [{"text": text} for text in ("Lima is the capital of Peru. " * 3, "巴黎", "The sol.")],
    }
    for kind, records in lines.items():
        data = folder / f"{kind}.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records))
        write_store(PreparationSettings(kind, (str(data),), str(folder / "tokenizer"), str(folder / kind)))
    return folder


def show(monkeypatch, capsys, **flags):
    """Run the command; return what it prints."""
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr("sys.argv", ["show_batch", "--max_seq_len", "64", *words])
    main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "packing", "mask", "isolates"),
    [("sft", packing, mask, True) for packing in ("pack", "none") for mask in STRATEGIES]
    + [("pretrain", way, mask, True) for way in ("pack", "best_fit", "none") for mask in FOR_TEXTS]
    + [("sft", "pack", "prefix", False)],
)
def test_every_row_is_a_table_of_its_tokens_and_a_picture_of_its_mask(
    stores, monkeypatch, capsys, kind, packing, mask, isolates
):
    settings = BatchSettings(64, packing=packing, prompt_mask=mask, isolate_documents=isolates)
    stream = BatchStream(documents_of([TokenStore(stores / kind)], settings))
    for row, batch in enumerate(stream.batches(epoch=0)):
        ways = {"packing": packing, "prompt_mask": mask, "isolate_documents": isolates}
        shown = show(monkeypatch, capsys, data=stores / kind, row=row, **ways)
        labels = [stream.documents.tokenizer.token_text(i) for i in batch.ids[0].tolist()]
        assert draw_mask(visible_mask(batch.layout)[0], labels) in shown
        roles = [ROLES[r] if kind == "sft" else "text" for p in stream.pieces(0, row) for r in p.roles]
        fields = (batch.position_ids, batch.document_ids, batch.block_ids, batch.labels)
        table = {" ".join(line.split()) for line in shown.split("\n")}
        for t, role in enumerate(roles):
            position, document, block, target = (int(field[0, t]) for field in fields)
            seen = "causal" if block < 0 else block
            line = f"{position} {labels[t]} {role} {document} {seen} {labels[t] if target >= 0 else ''}"
            assert " ".join(line.split()) in table
        counts = (
            f"{batch.num_real} tokens, {len(stream.pieces(0, row))} documents, {batch.num_targets} labels"
        )
        assert counts in shown


def test_the_mask_of_a_row_becomes_a_picture(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("eval.plots.MOST_LABELS", 0)  # which take longest to draw
    pictures = {}
    for mask in STRATEGIES:
        file = tmp_path / f"{mask}.png"
        printed = show(monkeypatch, capsys, data=stores / "sft", packing="none", prompt_mask=mask, png=file)
        assert f"{file} is drawn" in printed
        pictures[mask] = file.read_bytes()
        assert pictures[mask].startswith(b"\x89PNG")
    assert len(set(pictures.values())) == len(STRATEGIES)
