"""Models that keep passages apart in transformers: the same numbers as here, with two marks around each."""

import pytest
import torch
from test_hugging_face import in_float64
from test_modelling_file import opened

from dataset.chat_form import Message
from dataset.conversation import render
from dataset.prompts import layout_of, prompt_of
from eval.engines.transformers_files import MODELLING, export, in_parts
from eval.served_model import open_model
from model.errors import UserError
from model.generator import Request
from model.sampling import Sampling
from tests.conftest import WITH_PASSAGES, windowed
from tests.foreign import MISTRAL
from tests.serving import save_served, served_model

pytestmark = pytest.mark.usefixtures("code_kept_apart")


def asked(*parts: str) -> Message:
    """A question in parts, of which those in brackets are passages."""
    texts = [part.strip("[]") for part in parts]
    ends = [sum(map(len, texts[:n])) for n in range(len(parts) + 1)]
    passages = tuple((ends[n], ends[n + 1]) for n, part in enumerate(parts) if part.startswith("["))
    return Message("user", "".join(texts), passages=passages)


CHAT = (
    Message("system", "Be brief."),
    asked("Of ", "[Peru, of which Lima is the capital]", "[法国]", ", and of ", "[Mali]", ": which?"),
    Message("assistant", "Lima."),
    asked("[the sol]", " or ", "[欧元]", "?"),
    Message("assistant", "The sol."),
)
OTHER = (asked("法国的首都是哪里？"), Message("assistant", "巴黎。"))


@pytest.fixture(scope="module", params=WITH_PASSAGES)
def pair(request, tmp_path_factory, code_kept_apart):
    """A model, what transformers opens of its export, and the tokenizer and folder of that."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp(request.param)
    save_served(served_model(request.param, stops=True), folder / "ours")
    export(str(folder / "ours"), str(folder / "out"))
    served = open_model(folder / "ours", device="cpu")
    served.model.double()
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    return served, opened(folder / "out"), tokenizer, folder / "out"


def told(chats, tokenizer, **options):
    """What the tokenizer of transformers makes of conversations: ids, mask, and which tokens are no marks."""
    messages = [[{"role": m.role, "content": in_parts(m)} for m in chat] for chat in chats]
    rows = tokenizer.apply_chat_template(
        messages, padding=True, return_tensors="pt", return_dict=True, **options
    )
    marks = torch.tensor(tokenizer.convert_tokens_to_ids(["<|reserved_0|>", "<|reserved_1|>"]))
    return (
        rows["input_ids"],
        rows["attention_mask"],
        (rows["attention_mask"] > 0) & ~torch.isin(rows["input_ids"], marks),
    )


def computed(served, chat):
    """Ids (n,), labels and logits of ours, and the loss of the answers in nats."""
    rendered = render(chat, served.tokenizer)
    ids, layout = (
        torch.from_numpy(rendered.ids.astype("int64"))[None],
        layout_of(rendered, served.prompt_mask),
    )
    labels = ids.where(torch.from_numpy(rendered.targets), -100)
    with torch.no_grad():
        return ids[0], labels[0], served.model(ids, layout)[0], served.model(ids, layout, labels)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_loss_of_a_padded_batch_are_ours(pair, side):
    served, theirs, tokenizer, _ = pair
    ids, mask, kept = told((CHAT, OTHER), tokenizer, tokenizer_kwargs={"padding_side": side})
    ours, labels = [computed(served, chat) for chat in (CHAT, OTHER)], torch.full_like(ids, -100)
    labels[kept] = torch.cat([each[1] for each in ours])
    assert ids[kept].tolist() == torch.cat([each[0] for each in ours]).tolist()
    with torch.no_grad(), in_float64():
        made = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    assert (made.logits[kept] - torch.cat([each[2] for each in ours])).abs().max() < 1e-9
    assert abs(made.loss - sum(each[3] for each in ours) / (labels >= 0).sum()) < 1e-9


def test_greedy_answers_to_prompts_of_different_lengths_are_ours(pair):
    served, theirs, tokenizer, _ = pair
    prompts = [
        prompt_of(render(chat, served.tokenizer, True), served.prompt_mask) for chat in (CHAT[:-1], OTHER[:1])
    ]
    answers = served.generator().generate([Request(p, Sampling(max_new_tokens=9)) for p in prompts])
    options = {"add_generation_prompt": True, "tokenizer_kwargs": {"padding_side": "left"}}
    ids, mask, _ = told((CHAT[:-1], OTHER[:1]), tokenizer, **options)
    for how in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with in_float64():
            made = theirs.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False, **how)
        for row, answer in zip(made[:, ids.shape[1] :].tolist(), answers, strict=True):
            assert row[: len(answer.ids)] == [*answer.ids], how
            assert answer.finish_reason == "length" or row[len(answer.ids)] in served.stop_ids


def test_a_second_turn_goes_on_from_the_cache_of_the_first(pair):
    _, theirs, tokenizer, _ = pair
    (first, *_), (again, *_) = (told((CHAT[:n],), tokenizer, add_generation_prompt=True) for n in (2, 4))
    assert torch.equal(again[:, : first.shape[1]], first)
    with torch.no_grad(), in_float64():
        cache = theirs(first).past_key_values
        with pytest.raises(ValueError, match="expected ids of whole conversations; generate goes on"):
            theirs(again[:, -1:], past_key_values=cache)
        fresh = theirs.generate(again, max_new_tokens=6, do_sample=False)
        made = theirs.generate(again, past_key_values=cache, max_new_tokens=6, do_sample=False)
        assert torch.equal(made, fresh)
        with pytest.raises(ValueError, match="those of 8 cached tokens too, got 8: passages are found in"):
            theirs.generate(again, max_new_tokens=6, prefill_chunk_size=8)


def test_packed_rows_are_separate_conversations(pair):
    _, theirs, tokenizer, _ = pair
    parts = [told((chat,), tokenizer)[0] for chat in (CHAT, OTHER)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    with torch.no_grad(), in_float64():
        packed = theirs(input_ids=torch.cat(parts, 1), position_ids=positions).logits
        apart = torch.cat([theirs(input_ids=part).logits for part in parts], 1)
    assert (packed - apart).abs().max() < 1e-9


def test_nothing_that_follows_passages_knows_their_order(pair):
    _, theirs, tokenizer, _ = pair
    with torch.no_grad(), in_float64():
        one, two = (
            theirs(told(((asked("Pick ", *options, "!"),),), tokenizer)[0]).logits[0, -1]
            for options in (("[a rose]", "[gold]"), ("[gold]", "[a rose]"))
        )
        joined = theirs(told(((asked("Pick a rosegold!"),),), tokenizer)[0]).logits[0, -1]
    assert (one - two).abs().max() < 1e-9 < 1e-3 < (one - joined).abs().max()


def test_labels_of_marks_and_of_what_follows_them_carry_no_loss(pair):
    _, theirs, tokenizer, _ = pair
    ids, _, kept = told((CHAT,), tokenizer)
    with torch.no_grad(), in_float64():
        found, logits = theirs(input_ids=ids, labels=ids).loss, theirs(input_ids=ids).logits[0]
    told_by = [n for n in range(1, ids.shape[1]) if kept[0, n] and kept[0, n - 1]]
    nats = torch.nn.functional.cross_entropy(logits[[n - 1 for n in told_by]], ids[0, told_by])
    assert abs(found - nats) < 1e-9


def test_what_is_exported_opens_here_as_the_same_model(pair):
    served, _, _, folder = pair
    back = open_model(folder)
    assert (back.model.config, back.stop_ids) == (served.model.config, served.stop_ids)
    assert back.tokenizer.fingerprint == served.tokenizer.fingerprint
    rendered = [render(CHAT, each.tokenizer) for each in (served, back)]
    assert rendered[0].ids.tolist() == rendered[1].ids.tolist()


def test_its_modelling_file_is_short_and_needs_nothing_of_ours(pair):
    code = (pair[3] / MODELLING.name).read_text()
    assert len(code.splitlines()) < 150
    assert "from model" not in code and "import model" not in code


@pytest.mark.parametrize("shape", [{"architecture": "gpt2"}, {"architecture": "llama"}])
def test_other_kinds_compute_as_ours_which_an_export_proves_by_itself(shape, tmp_path):
    save_served(served_model("isolated", **shape), tmp_path / "ours")
    assert "under prompt_mask isolated" in export(str(tmp_path / "ours"), str(tmp_path / "out"))


def test_windows_and_templates_that_cannot_mark_passages_are_refused(tmp_path):
    save_served(served_model("sets", **windowed(None, 7)), tmp_path / "windows")
    with pytest.raises(UserError, match="windows has sliding windows: .* passages share positions"):
        export(str(tmp_path / "windows"), str(tmp_path / "out"), "transformers")
    save_served(served_model("sets"), tmp_path / "foreign")
    (tmp_path / "foreign" / "chat_template.jinja").write_text(MISTRAL)
    with pytest.raises(UserError, match="finds passages by <.reserved_0.> and <.reserved_1.>, which its tok"):
        export(str(tmp_path / "foreign"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
