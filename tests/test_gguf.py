"""GGUF files, and llama.cpp where it is installed: the same ids, logits and answers under every mask."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from struct import pack

import pytest
import torch
from gguf import GGUFReader, quants

from dataset.conversation import Message, render
from dataset.prompts import prompt_of
from dataset.tokenizer import Tokenizer
from eval.chat import ChatSession, TextSampling
from eval.engines.gguf_checks import plain_encoder
from eval.engines.gguf_file import export, interleaved, write_gguf
from eval.engines.llama_engine import load_library, open_gguf, runs_of
from eval.served_model import ServedModel, open_model
from model.config import from_preset
from model.errors import UserError
from model.generator import Prompt, Request
from model.rope_scaling import RopeScaling
from model.sampling import Sampling
from model.transformer import LanguageModel
from scripts import chat, export_gguf
from tests.conftest import WITH_BLOCKS, windowed
from tests.foreign import save_foreign
from tests.serving import TEXTS, save_served, served_model, small_tokenizer

needs_llama = pytest.mark.skipif(
    not find_spec("llama_cpp"), reason="needs llama.cpp: pip install -r requirements-optional.txt"
)
CHAT = (
    Message("system", "Be brief."),
    Message("user", "What is the capital of Peru?"),
    Message("assistant", "Lima."),
    Message("user", "它的货币呢？"),
)
KINDS = {
    "qwen3": {},
    "llama": {"architecture": "llama", "tie_word_embeddings": False},
    "linear": {"architecture": "llama", "rope_scaling": RopeScaling("linear", 2.0)},
    "biased": {"architecture": "llama", "attention_bias": True, "mlp_bias": True},
    "gpt2": {"architecture": "gpt2"},
}

WEIGHTS = {"blk.1.attn_q.weight": "layers.1.self_attn.q_proj", "token_embd.weight": "embed_tokens"}


def random_model(**shape) -> ServedModel:
    """A random model whose biases are not zero."""
    tokenizer = small_tokenizer()
    torch.manual_seed(0)
    config = from_preset("tiny", vocab_size=400, initializer_range=0.2, **shape)
    model = LanguageModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * name.endswith("bias"))
    return ServedModel(model, tokenizer, tokenizer.stop_ids, Path("random"))


def written(served: ServedModel, folder: Path, quantize: str = "f32") -> tuple[Path, list[str]]:
    """A model as a file, and what was said of it."""
    save_served(served, folder / "ours")
    lines = [*export(str(folder / "ours"), str(folder / "model.gguf"), quantize, ())]
    return folder / "model.gguf", lines


def prompt(prompt_mask: str) -> Prompt:
    return prompt_of(render(CHAT, small_tokenizer(), True), prompt_mask)


def test_a_layout_is_a_plan_of_runs():
    assert runs_of([0, 0, 0, -1, -1, 1, 1, 2, -1]) == [
        (True, 3),
        (False, 2),
        (True, 2),
        (True, 1),
        (False, 1),
    ]
    assert runs_of([-1, -1]) == [(False, 2)] and runs_of([]) == []


def test_halves_of_a_head_that_turn_together_lie_beside_each_other():
    assert interleaved(torch.arange(16), 8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


@needs_llama
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_our_logits_in_llama_cpp(kind, tmp_path):
    served = random_model(prompt_mask="segment", **KINDS[kind])
    file, _ = written(served, tmp_path)
    llama, asked = open_gguf(file), prompt("segment")
    ours, theirs = (m.generator().feed(m.model.new_cache(1), [asked]) for m in (served, llama))
    rounding = 1e-2 if kind == "gpt2" else 1e-4  # which bends values by a table in 16 bits
    assert (ours - theirs).abs().max() < rounding
    assert llama.model.num_parameters() == served.model.num_parameters()


@needs_llama
@pytest.mark.parametrize("prompt_mask", ("causal", *WITH_BLOCKS))
def test_conversations_in_llama_cpp_have_our_tokens_turn_by_turn(prompt_mask, tmp_path):
    file, _ = written(served_model(prompt_mask, stops=True), tmp_path)
    sampling = TextSampling(max_new_tokens=12)
    sessions = [ChatSession(each, sampling) for each in (open_model(tmp_path / "ours"), open_gguf(file))]
    for question in ("Capital of Peru?", "它的货币呢？", "And?"):
        answers = [[*session.ask(question)] for session in sessions]
        assert answers[0] == answers[1]
    assert sessions[0].turns == sessions[1].turns
    assert [s.last.reused_tokens for s in sessions] == [sessions[0].last.reused_tokens] * 2
    for session in sessions:
        session.undo()
    assert [[*s.ask("Again?")] for s in sessions][0] == [*sessions[1].retry()]


@needs_llama
def test_a_long_prompt_goes_in_parts_and_a_block_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    served = random_model(prompt_mask="prefix", max_position_embeddings=700)
    file, _ = written(served, tmp_path)
    ids = tuple(torch.randint(20, 300, (640,)).tolist())
    asked = Prompt(ids, (-1,) * 100 + (0,) * 40 + (-1,) * 500)
    requests = [Request(asked, Sampling(max_new_tokens=8)), Request(asked.part(0, 90), Sampling())]
    ours, theirs = (m.generator().generate(requests, batch_size=1) for m in (served, open_gguf(file)))
    assert [each.ids[:8] for each in ours] == [each.ids[:8] for each in theirs]
    monkeypatch.setattr("eval.engines.llama_engine.MOST_BLOCK_TOKENS", 32)
    llama = open_gguf(file)
    with pytest.raises(UserError, match="a block of 40 tokens is longer than llama.cpp takes at once"):
        llama.generator().generate([Request(asked.part(100, 160))], batch_size=1)


@pytest.mark.parametrize("quantize", ["f16", "q8_0", "q4_0"])
def test_narrow_weights_are_the_nearest_that_their_form_has(quantize, tmp_path):
    served = random_model(intermediate_size=200)
    file, lines = written(served, tmp_path, quantize)
    assert any("rows are no multiple of 32" in line for line in lines) == (quantize != "f16")
    tensors = {each.name: each for each in GGUFReader(file).tensors}
    for name, module in WEIGHTS.items():
        expected = served.model.model.get_submodule(module).weight.detach()
        made = torch.from_numpy(quants.dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        if quantize == "f16":
            assert torch.equal(made, expected.half().float())
            continue
        blocks, error = expected.reshape(-1, 32), (made - expected).reshape(-1, 32).abs()
        steps = 8 if quantize == "q4_0" and name != "token_embd.weight" else 127
        assert (error <= 1.01 * blocks.abs().amax(1, keepdim=True) / steps).all() and error.max() > 0
    assert tensors["blk.0.ffn_norm.weight"].tensor_type.name == "F32"
    if find_spec("llama_cpp"):
        assert open_gguf(file).speed.startswith(f"{quantize} weights in llama.cpp")


def test_a_file_says_its_mask_and_hides_it_from_programs_that_would_ignore_it(tmp_path):
    for mask, named in (("causal", "qwen3"), ("history", "sightline-qwen3")):
        file, lines = written(served_model(mask, stops=True), tmp_path / mask)
        values = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
        assert (values["general.architecture"], values["sightline.prompt_mask"]) == (named, mask)
        assert values["tokenizer.chat_template"] == (tmp_path / mask / "ours/chat_template.jinja").read_text()
        assert values["tokenizer.ggml.eos_token_id"] == small_tokenizer().im_end_id
        assert lines[-1].endswith("every program on llama.cpp" if mask == "causal" else "--engine llama.cpp")


@needs_llama
def test_programs_on_llama_cpp_open_a_causal_model_and_refuse_another(tmp_path):
    import llama_cpp

    for mask in ("causal", "prefix"):
        file, _ = written(served_model(mask), tmp_path / mask)
        settings = llama_cpp.llama_model_default_params()
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
        assert bool(model) == (mask == "causal")


def test_rules_of_llama_cpp_give_the_ids_of_our_tokenizer():
    tokenizer, plain = small_tokenizer(), plain_encoder(small_tokenizer())
    for text in (*TEXTS, "<|im_end|> is text here", "混合 text，又是中文。  \n\n  x"):
        assert plain(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (windowed(None, 5), "no sliding windows in its qwen3"),
        ({"architecture": "gemma2"}, "no form of gemma2 that is written here; expected qwen3, llama, gpt2"),
        ({"attention_bias": True}, "no attention_bias True in its qwen3"),
        ({"architecture": "llama", "hidden_act": "gelu"}, "no hidden_act gelu in its llama"),
        ({"final_logit_softcapping": 9.0}, "no final_logit_softcapping 9.0"),
        ({"rope_scaling": RopeScaling("yarn", 4.0, 64)}, "no scaled positions .* got yarn"),
    ],
)
def test_what_llama_cpp_has_not_is_refused_by_its_name(shape, words, tmp_path):
    with pytest.raises(UserError, match=words):
        written(random_model(**shape), tmp_path)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(name, tmp_path):
    save_foreign(tmp_path / "foreign", name)
    tokenizer = Tokenizer.load(tmp_path / "foreign")
    foreign = replace(random_model(), tokenizer=tokenizer)
    with pytest.raises(UserError, match="llama.cpp has no name for how the tokenizer"):
        written(foreign, tmp_path)


def test_a_damaged_file_of_the_tokenizer_is_told_and_what_it_may_leave_out_is_not_missed(tmp_path):
    served = random_model()
    served.tokenizer.save(tmp_path / "own")
    content = json.loads((file := tmp_path / "own/tokenizer.json").read_text())
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "normalizer"}))
    written(replace(served, tokenizer=Tokenizer.load(tmp_path / "own")), tmp_path)
    (tmp_path / "model.gguf").unlink()
    (tmp_path / "own/chat_template_training.jinja").write_bytes(b"\xcb(")
    with pytest.raises(UserError, match="chat_template_training.jinja is damaged: expected UTF-8"):
        written(replace(served, tokenizer=Tokenizer.load(tmp_path / "own")), tmp_path)


def test_a_file_of_others_and_a_missing_engine_are_told_in_one_line(tmp_path, command, monkeypatch):
    file, _ = written(served_model("prefix", stops=True), tmp_path)
    words = [chat, "--engine", "llama.cpp", "--prompt", "Where is Ada?", "--max_new_tokens", 4, "--model"]
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:200])
    for path, line in (("none.gguf", "not found"), ("cut.gguf", "no whole GGUF file")):
        with pytest.raises(UserError, match=line):
            command(*words, tmp_path / path)
    with pytest.raises(UserError, match="--out .*model.gguf exists already"):
        command(export_gguf, "--model", tmp_path / "ours", "--out", file)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    load_library.cache_clear()
    with pytest.raises(UserError, match="pip install -r requirements-optional.txt"):
        command(*words, file)


@needs_llama
@pytest.mark.parametrize(
    ("written", "changed", "words"),
    [
        (b'"vocab_size": 320', b'"vocab_size": 999', "has 320 tokens but says 999"),
        (b'{"vocab_size"', b'["vocab_size"', "not as scripts.export_gguf writes it"),
        (b"sightline.tokenizer", b"sightline.tokenizeX", "not as .*sightline.tokenizer"),
        (b"general.file_type", b"general.file_typX", "not as .*general.file_type"),
        (b"sightline.stop_ids", b"sightline.stop_idX", None),
    ],
)
def test_what_a_stranger_changed_in_a_file_is_told_and_nothing_is_read_beyond_it(
    written, changed, words, tmp_path
):
    write_gguf(served_model("prefix", stops=True), tmp_path / "good.gguf")
    content = (tmp_path / "good.gguf").read_bytes()
    assert written in content
    (tmp_path / "bad.gguf").write_bytes(content.replace(written, changed))
    if words is None:  # as of a model without stop ids, of which nothing is written
        assert open_gguf(tmp_path / "bad.gguf").stop_ids == ()
    else:
        with pytest.raises(UserError, match=words):
            open_gguf(tmp_path / "bad.gguf")


def test_lists_and_json_without_end_and_stop_ids_that_are_none_are_told(tmp_path):
    write_gguf(served_model("prefix", stops=True), tmp_path / "good.gguf")
    content = (tmp_path / "good.gguf").read_bytes()
    stops, files = (content.index(key) + len(key) for key in (b"sightline.stop_ids", b"sightline.tokenizer"))
    for written, words in (
        (content[:stops] + pack("<IIQ", 9, 0, 2**50), "no whole GGUF file .*ends too early"),
        (content[:stops] + pack("<I", 9) + pack("<IQ", 9, 1) * 3000, "no whole GGUF file .*recursion"),
        (overwritten(content, stops + 16, pack("<i", 320)), "stop_ids: expected ids below 320"),
        (overwritten(content, stops + 16, pack("<i", -1)), "stop_ids.*expected int, got -1"),
        (overwritten(content, files + 12, b"[" * 5000), "not as scripts.export_gguf .*recursion"),
    ):
        (tmp_path / "bad.gguf").write_bytes(written)
        with pytest.raises(UserError, match=words):
            open_gguf(tmp_path / "bad.gguf")


def overwritten(content: bytes, at: int, changed: bytes) -> bytes:
    return content[:at] + changed + content[at + len(changed) :]


@needs_llama
def test_chat_answers_with_llama_cpp_as_with_our_own_engine(tmp_path, command):
    file, _ = written(served_model("prefix", stops=True), tmp_path)
    asked, texts = ("--prompt", "Where is Ada?", "--max_new_tokens", 8, "--temperature", 1, "--seed", 3), []
    for words in (("--model", tmp_path / "ours"), ("--model", file, "--engine", "llama.cpp")):
        texts.append(command(chat, *words, *asked))
    assert texts[0] == texts[1] and texts[0].strip()
