"""Training on pairs of answers: the loss of the paper, however rows are spread, and what it changes."""

# ruff: noqa: F401, F811 - pytest finds imported fixtures by the names of parameters

import math

import pytest
import torch
import transformers
from training_runs import data, dpo, init, metrics, preferences, run_trainer

import scripts.evaluate
from dataset.batch_settings import BatchSettings
from dataset.batches import BatchStream
from dataset.documents import documents_of
from dataset.token_store import TokenStore
from model.checkpoint import load_checkpoint
from model.errors import UserError
from model.layouts import document_layout, prompt_blocks
from model.transformer import LanguageModel
from trainer.device import find_device
from trainer.objective import Preference
from trainer.settings import DpoSettings

BETA, SMOOTHING = 0.3, 0.1


def opened(init):
    return transformers.Qwen3ForCausalLM.from_pretrained(init, dtype=torch.float64)


def begun(init, data, mask="causal", smoothing=0.0, loss="dpo"):
    """The objective, the model as it is at first, and batches of pairs, in float64."""
    wanted = {"loss": loss, "beta": BETA, "label_smoothing": smoothing}
    settings = DpoSettings(data=("x",), out="x", init="x", max_steps=1, dtype="float32", **wanted)
    model = load_checkpoint(init).model.double()
    objective = Preference(model, settings, find_device(settings))
    rows = BatchSettings(max_seq_len=320, prompt_mask=mask)
    return objective, model, BatchStream(documents_of([TokenStore(data / "dpo")], rows))


def stepped(init, data, *choices):
    """The same with a model that has moved on from its reference."""
    objective, model, stream = begun(init, data, *choices)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    return objective, model, stream


def by_the_paper(store, pairs, policy, reference, smoothing, is_ipo=False):
    """The loss, summed over pairs of documents (equation 7); both models map a document to logits (n, V).

    That of IPO is equation 17 of its paper, over what the mean token of an answer has.
    """

    def log_likelihood(model, document):
        logits, ids = model(document).log_softmax(-1), document.ids.tolist()
        return sum(logits[t - 1, ids[t]] for t in range(len(ids)) if document.trained[t])

    loss = 0.0
    for pair in pairs:
        good, bad = (
            log_likelihood(policy, store[side]) - log_likelihood(reference, store[side]) for side in pair
        )
        if is_ipo:
            good, bad = good / store[pair[0]].trained.sum(), bad / store[pair[1]].trained.sum()
            loss += (good - bad - 1 / (2 * BETA)) ** 2
            continue
        wins = 1 / (1 + torch.exp(-BETA * (good - bad)))
        loss -= (1 - smoothing) * torch.log(wins) + smoothing * torch.log(1 - wins)
    return loss


def pairs_in(stream, rows):
    """The documents of the pairs in some rows."""
    documents = [piece.document for row in range(rows) for piece in stream.pieces(0, row)]
    return list(zip(documents[::2], documents[1::2], strict=True))


@pytest.mark.parametrize(
    "mask, smoothing, loss",
    [("causal", 0.0, "dpo"), ("prefix", SMOOTHING, "dpo"), ("history", 0.0, "dpo"), ("prefix", 0.0, "ipo")],
)
def test_the_loss_is_that_of_the_paper_where_each_answer_is_read_alone(init, data, mask, smoothing, loss):
    objective, model, stream = stepped(init, data, mask, smoothing, loss)

    def alone(model):
        def logits(document):
            blocks = prompt_blocks(mask, *map(torch.from_numpy, (document.targets, document.starts)))
            return LanguageModel.forward(model, as_row(document), document_layout(blocks))[0]

        return logits

    batch, pairs = next(stream.batches(0, rows_per_step=2)), pairs_in(stream, 2)
    models = (alone(each) for each in (model, load_checkpoint(init).model.double()))
    expected = by_the_paper(stream.documents.stores[0], pairs, *models, smoothing, loss == "ipo")
    assert objective.count(batch) == len(pairs) > 2
    torch.testing.assert_close(objective(model, batch)[0], expected, rtol=1e-12, atol=0)


def as_row(document):
    return torch.tensor([document.ids.tolist()])


def test_the_loss_is_that_of_the_paper_over_the_logits_of_transformers(init, data):
    objective, model, stream = stepped(init, data)
    theirs = [opened(init) for _ in range(2)]
    theirs[0].load_state_dict(model.state_dict())
    models = [lambda document, m=m: m(as_row(document)).logits[0] for m in theirs]
    expected = by_the_paper(stream.documents.stores[0], pairs_in(stream, 2), *models, 0.0)
    loss = objective(model, next(stream.batches(0, rows_per_step=2)))[0]
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # theirs turns by angles in float32


@pytest.mark.parametrize("loss, theirs_called", [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_the_loss_is_that_of_trl_where_it_is_installed(init, data, tmp_path, loss, theirs_called):
    from datasets import Dataset  # takes a second, and every worker reads every file

    trl = pytest.importorskip("trl", reason="TRL is not installed")
    objective, model, stream = stepped(init, data, "causal", 0.0, loss)
    documents = [stream.documents.stores[0][n] for pair in pairs_in(stream, 2) for n in pair]
    documents = documents[::2] + documents[1::2]  # all good answers first, as theirs lie in a batch
    length = max(map(len, documents))
    ids, answers, real = (torch.zeros(len(documents), length, dtype=torch.long) for _ in range(3))
    for row, document in enumerate(documents):
        ids[row, : len(document)], real[row, : len(document)] = as_row(document)[0], 1
        answers[row, : len(document)] = torch.from_numpy(document.trained)
    theirs, first = (opened(init) for _ in range(2))
    theirs.load_state_dict(model.state_dict())
    named = {"beta": BETA, "loss_type": [theirs_called], "use_cpu": True, "bf16": False, "report_to": []}
    arguments = trl.DPOConfig(str(tmp_path / "trl"), **named)
    tokenizer, rows = transformers.AutoTokenizer.from_pretrained(init), Dataset.from_list(preferences())
    trainer = trl.DPOTrainer(theirs, first, arguments, train_dataset=rows, processing_class=tokenizer)
    batch = {"input_ids": ids, "attention_mask": real, "completion_mask": answers}
    ours = objective(model, next(stream.batches(0, rows_per_step=2)))[0] / (len(documents) // 2)
    assert float(ours) == pytest.approx(float(trainer.compute_loss(theirs, batch)), rel=1e-5)


def test_the_first_loss_is_the_logarithm_of_two_and_good_answers_come_to_be_preferred(
    dpo, data, tmp_path, capsys
):
    out = tmp_path / "run"
    dpo(out, "--max_steps", 15, "--batch_size", 2, "--validation", data / "dpo", "--prompt_mask", "prefix")
    first, *_, last, validation = metrics(out)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert first["rewards/chosen"] == first["rewards/rejected"] == first["rewards/margins"] == 0
    assert last["rewards/margins"] > 0.5 and last["rewards/accuracies"] > 0.9 and last["loss"] < 0.5
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert validation["rewards/margins"] > 0.5 and validation["rewards/accuracies"] > 0.9
    assert validation["nats_per_token"] < 0.5 and validation["bits_per_byte"] is None
    printed = capsys.readouterr().out
    assert "24 pairs" in printed and f" margin {last['rewards/margins']:.2g} right " in printed
    assert f"{validation['nats_per_token']:.4f} nats/pair" in printed
    assert load_checkpoint(out).model.config.prompt_mask == "prefix"


def test_any_split_of_a_step_into_rows_has_the_same_course_by_the_gradient_of_the_mean(
    init, data, dpo, tmp_path
):
    courses = []
    for at_once, passes in ((4, 1), (1, 4)):
        out, rows = tmp_path / str(passes), ("--batch_size", at_once, "--gradient_accumulation", passes)
        dpo(out, "--max_steps", 2, "--beta", BETA, *rows)
        courses += [[record[name] for record in metrics(out) for name in ("gradient_norm", "loss")]]
    assert courses[0] == pytest.approx(courses[1], rel=1e-5)
    objective, model, stream = begun(init, data)
    batch = next(stream.batches(0, rows_per_step=4))
    (objective(model, batch)[0] / objective.count(batch)).backward()
    norm = torch.stack([weight.grad.norm() for weight in model.parameters()]).norm()
    assert courses[0][0] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--init", "fresh"], "--init: expected a model directory, got fresh"),
        (["--label_smoothing", 0.5], "--label_smoothing: expected less than 0.5, got 0.5"),
        (["--label_smoothing", 0.1, "--loss", "ipo"], "--label_smoothing has no effect with --loss ipo"),
        (["--beta", 0], "--beta: expected more than 0, got 0"),
        (["--supervise", "all"], "supervise"),
    ],
)
def test_settings_that_make_no_preference_are_one_line(dpo, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as caught:
        dpo(tmp_path / "run", "--max_steps", 1, *flags)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_an_evaluation_measures_no_loss_of_pairs_as_if_they_were_chats(command, init, data):
    with pytest.raises(UserError, match="holds pairs of answers; expected texts or chats"):
        command(scripts.evaluate, "--model", init, "--loss_data", data / "dpo")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "{data}/sft"], "holds sft data; expected what prepare_data --kind preference writes"),
        (["--isolate_documents", "false"], "would show an answer of a pair to the other"),
        (["--packing", "best_fit"], "packing best_fit is for texts"),
        (["--max_seq_len", 16], "no answer fits into 16 tokens"),
    ],
)
def test_data_and_rows_that_hold_no_pairs_are_refused(dpo, data, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        dpo(tmp_path / "run", "--max_steps", 1, *(str(flag).format(data=data) for flag in flags))
    assert not (tmp_path / "run").exists()
