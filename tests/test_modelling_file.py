"""Models with a prompt mask in transformers, through the modelling file that their directory brings along."""

from pathlib import Path

import pytest
import torch
from test_hugging_face import in_float64

from dataset.conversation import Message, render
from dataset.prompts import prompt_of
from eval.engines.gguf_file import write_gguf
from eval.engines.transformers_files import MODELLING, export
from eval.served_model import ServedModel, open_model
from model.checkpoint import load_checkpoint
from model.config import from_preset
from model.errors import UserError
from model.generator import Request
from model.layouts import prompt_blocks
from model.masks import Layout, is_readable
from model.sampling import Sampling
from model.transformer import LanguageModel
from tests.conftest import WITH_BLOCKS, WITH_PASSAGES, windowed
from tests.foreign import MISTRAL
from tests.serving import save_served, served_model, small_tokenizer

CHAT = (
    Message("system", "Be brief."),
    Message("user", "What is the capital of Peru?"),
    Message("assistant", "Lima."),
    Message("user", "它的货币呢？"),
    Message("assistant", "The sol."),
)
OTHER = (Message("user", "法国的首都是哪里？"), Message("assistant", "巴黎。"))


pytestmark = pytest.mark.usefixtures("code_kept_apart")


def opened(folder: Path):
    from transformers import AutoModelForCausalLM

    narrow = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).double()
    narrow.config._experts_implementation = "eager"  # others take float64 or not, as memory happens to lie
    with in_float64():  # in which rotary angles are computed once
        model = type(narrow)(narrow.config).double().eval()
    model.load_state_dict(narrow.state_dict())
    model.generation_config = narrow.generation_config
    return model


@pytest.fixture(scope="module", params=WITH_BLOCKS)
def pair(request, tmp_path_factory, code_kept_apart):
    """A model with a mask, what transformers opens of its export, and the folder of that."""
    folder = tmp_path_factory.mktemp(request.param)
    save_served(served_model(request.param, stops=True), folder / "ours")
    export(str(folder / "ours"), str(folder / "out"))
    served = open_model(folder / "ours", device="cpu")
    served.model.double()
    return served, opened(folder / "out"), folder / "out"


def rows(served: ServedModel, chats, on_the_left: bool = False):
    """Ids, attention mask, labels and layout (B, T) of conversations, padded."""
    tokens = []
    for chat in chats:
        rendered = render(chat, served.tokenizer)
        ids, targets, starts = (
            torch.from_numpy(x) for x in (rendered.ids.astype("int64"), rendered.targets, rendered.starts)
        )
        blocks = prompt_blocks(served.prompt_mask, targets, starts)
        labels = ids.where(targets & ~is_readable(blocks[None])[0], -100)
        index = torch.arange(len(ids))
        tokens.append(torch.stack((ids, torch.ones_like(ids), labels, torch.zeros_like(ids), index, blocks)))
    longest, fills = max(each.shape[1] for each in tokens), torch.tensor([3, 0, -100, -1, 0, -1])
    padded = []
    for each in tokens:
        pads = fills[:, None].expand(-1, longest - each.shape[1])
        padded.append(torch.cat((pads, each) if on_the_left else (each, pads), 1))
    ids, mask, labels, *layout = torch.stack(padded, 1)
    return ids, mask, labels, Layout(*layout)


@pytest.mark.parametrize("on_the_left", [False, True])
def test_logits_and_loss_of_a_padded_batch_are_ours(pair, on_the_left):
    served, theirs, _ = pair
    ids, mask, labels, layout = rows(served, (CHAT, OTHER), on_the_left)
    with torch.no_grad(), in_float64():
        made = theirs(input_ids=ids, attention_mask=mask, position_ids=layout.position_ids, labels=labels)
        expected, nats = served.model(ids, layout), served.model(ids, layout, labels)
    assert ((made.logits - expected)[mask > 0]).abs().max() < 1e-9
    assert abs(made.loss - nats / (labels[:, 1:] >= 0).sum()) < 1e-9


def test_greedy_answers_to_prompts_of_different_lengths_are_ours(pair):
    served, theirs, _ = pair
    prompts = [
        prompt_of(render(chat, served.tokenizer, True), served.prompt_mask) for chat in (CHAT[:-1], OTHER[:1])
    ]
    answers = served.generator().generate([Request(p, Sampling(max_new_tokens=12)) for p in prompts])
    longest = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[3] * (longest - len(p.ids)) + [*p.ids] for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    for options in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with in_float64():
            made = theirs.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **options)
        for row, answer in zip(made[:, longest:].tolist(), answers, strict=True):
            assert row[: len(answer.ids)] == [*answer.ids], options
            assert answer.finish_reason == "length" or row[len(answer.ids)] in served.stop_ids


def test_a_second_turn_reuses_the_cache_where_the_mask_allows_it_and_is_refused_elsewhere(pair):
    served, theirs, _ = pair
    first, again = (
        torch.tensor([prompt_of(render(CHAT[:n], served.tokenizer, True), served.prompt_mask).ids])
        for n in (2, 4)
    )
    cached = len(render(CHAT[:3], served.tokenizer)) - 1  # with the end of the answer, without its newline
    assert torch.equal(again[:, : first.shape[1]], first)
    with torch.no_grad(), in_float64():
        cache = theirs(first).past_key_values
        for token in again[0, first.shape[1] : cached]:
            cache = theirs(token.view(1, 1), past_key_values=cache).past_key_values
        fresh = theirs.generate(again, max_new_tokens=6, do_sample=False)
        if served.prompt_mask == "history":
            with pytest.raises(ValueError, match=f"cut after {cached} cached tokens"):
                theirs.generate(again, past_key_values=cache, max_new_tokens=6, do_sample=False)
        else:
            made = theirs.generate(again, past_key_values=cache, max_new_tokens=6, do_sample=False)
            assert torch.equal(made, fresh)


def test_packed_rows_are_separate_conversations_and_labels_that_can_be_read_carry_no_loss(pair):
    served, theirs, _ = pair
    parts = [rows(served, (chat,)) for chat in (CHAT, OTHER)]
    ids, labels = (torch.cat([part[n] for part in parts], 1) for n in (0, 2))
    positions = torch.cat([part[3].position_ids for part in parts], 1)
    with torch.no_grad(), in_float64():
        packed = theirs(input_ids=ids, position_ids=positions, labels=labels)
        apart = [theirs(input_ids=part[0]).logits for part in parts]
        unmasked = theirs(input_ids=ids, position_ids=positions, labels=ids).loss
    assert (packed.logits - torch.cat(apart, 1)).abs().max() < 1e-9
    blocks = torch.cat([part[3].block_ids for part in parts], 1)[0].tolist()
    kept = [n for n in range(1, len(blocks)) if not blocks[n - 1] == blocks[n] >= 0]
    nats = torch.nn.functional.cross_entropy(packed.logits[0, [n - 1 for n in kept]], ids[0, kept])
    assert abs(unmasked - nats) < 1e-9


def test_blocks_can_be_given_where_no_mark_tells_them(pair):
    _, theirs, _ = pair
    ids, blocks = torch.arange(20, 31)[None], torch.tensor([[0] * 6 + [-1] * 5])
    with torch.no_grad(), in_float64():
        causal, given = (theirs(input_ids=ids, block_ids=each).logits for each in (None, blocks))
        stepwise = theirs.generate(ids, block_ids=blocks, max_new_tokens=3, do_sample=False, use_cache=False)
        assert torch.equal(
            theirs.generate(ids, block_ids=blocks, max_new_tokens=3, do_sample=False), stepwise
        )
    assert (causal - given)[:, 0].abs().max() > 1e-3


def test_a_prompt_is_one_chunk_whatever_prefill_chunk_size_says(pair):
    served, theirs, _ = pair
    ids = torch.tensor([prompt_of(render(CHAT[:2], served.tokenizer, True), served.prompt_mask).ids])
    with in_float64():
        whole = theirs.generate(ids, max_new_tokens=3, do_sample=False)
        chunk = theirs.generate(ids, max_new_tokens=3, do_sample=False, prefill_chunk_size=ids.shape[1])
        assert torch.equal(chunk, whole)
        for size in (1, 8):
            with pytest.raises(
                ValueError, match=f"those of {size} cached tokens too, got {size}: a block cannot"
            ):
                theirs.generate(ids, max_new_tokens=3, prefill_chunk_size=size)


def test_it_opens_nowhere_without_its_code_nor_with_attention_that_takes_no_mask(pair):
    from transformers import AutoConfig, AutoModelForCausalLM

    _, theirs, folder = pair
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with pytest.raises(ValueError, match="[Ff]lash"):
        AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, attn_implementation="flash_attention_2"
        )
    assert not theirs.is_backend_compatible(), "vLLM and others would put their own attention in place"


def test_what_is_exported_or_saved_by_transformers_opens_here_as_the_same_model(pair, tmp_path):
    served, theirs, folder = pair
    theirs.float().save_pretrained(tmp_path)
    assert (tmp_path / MODELLING.name).read_text() == (folder / MODELLING.name).read_text()
    theirs.double()
    for each in (folder, tmp_path):
        back = load_checkpoint(each)
        assert (back.model.config, back.stop_ids) == (served.model.config, served.stop_ids)
        for weight, other in zip(back.model.parameters(), served.model.parameters(), strict=True):
            assert torch.equal(weight.double(), other)


KINDS = {
    "windows": windowed(None, 7, 7),
    "windows on both sides": windowed(None, 7, None, 7, both_sides=True),
    "llama": {"architecture": "llama"},
    "qwen3_moe": {"architecture": "qwen3_moe", "router_bias": False},
    "gpt2": {"architecture": "gpt2"},
    "gemma2": {"architecture": "gemma2", "sliding_window": 7},
    "gemma3": {"architecture": "gemma3", "sliding_window": 7, "num_hidden_layers": 3},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_as_ours_under_blocks_and_windows(kind, tmp_path):
    tokenizer = small_tokenizer()
    config = from_preset(
        "tiny", vocab_size=tokenizer.vocab_size, initializer_range=0.2, prompt_mask="segment", **KINDS[kind]
    )
    random = ServedModel(LanguageModel(config).eval(), tokenizer, tokenizer.stop_ids, Path("random"))
    save_served(random, tmp_path / "ours")
    export(str(tmp_path / "ours"), str(tmp_path / "out"))
    served, theirs = open_model(tmp_path / "ours", device="cpu"), opened(tmp_path / "out")
    ids, mask, _, layout = rows(served, (CHAT, OTHER))
    with torch.no_grad(), in_float64():
        expected = served.model.double()(ids, layout)
        made = theirs(input_ids=ids, attention_mask=mask).logits
        causal = served.model(ids)
    rounding = 1e-6 if "gemma" in kind else 1e-9  # its norms are saved as what is added to 1
    assert ((made - expected)[mask > 0]).abs().max() < rounding
    assert ((made - causal)[mask > 0]).abs().max() > 1e-3
    assert load_checkpoint(tmp_path / "out").model.config.layer_patterns == config.layer_patterns
    prompt = prompt_of(render(CHAT[:-1], tokenizer, True), "segment")
    [answer] = served.generator().generate([Request(prompt, Sampling(max_new_tokens=9))])
    with in_float64():
        made = theirs.generate(torch.tensor([prompt.ids]), max_new_tokens=9, do_sample=False)
    assert made[0, len(prompt.ids) :].tolist()[: len(answer.ids)] == [*answer.ids]


@pytest.mark.parametrize("prompt_mask", WITH_PASSAGES)
def test_passages_kept_apart_are_refused_by_llama_cpp(prompt_mask, tmp_path):
    save_served(served_model(prompt_mask), tmp_path / "ours")
    with pytest.raises(UserError, match=f"llama.cpp has no passages .* as prompt_mask {prompt_mask} has it"):
        write_gguf(open_model(tmp_path / "ours"), tmp_path / "model.gguf")


def test_a_template_without_a_mark_before_answers_is_refused(tmp_path):
    save_served(served_model("prefix"), tmp_path / "ours")
    (tmp_path / "ours" / "chat_template.jinja").write_text(MISTRAL)
    with pytest.raises(UserError, match="no mark before answers"):
        export(str(tmp_path / "ours"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_modelling_file_is_short_and_needs_nothing_of_ours(pair):
    code = (pair[2] / MODELLING.name).read_text()
    assert len(code.splitlines()) < 150
    assert "from model" not in code and "import model" not in code
