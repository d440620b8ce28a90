"""Models as directories of transformers; one with another mask than causal brings a modelling file along."""

import inspect
import re
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.chat_form import MARKS_PASSAGES, ChatForm, Message
from dataset.conversation import Rendered, Renderer
from dataset.prompts import layout_of
from dataset.tokenizer import RESERVED, TEMPLATE_FILES
from eval.served_model import ServedModel, open_model
from model.checkpoint import export_checkpoint
from model.errors import UserError
from model.files import text_in, whole_folder
from model.hugging_face import MASKED, kind_for
from model.kind import Kind
from model.layouts import FIRST_ISOLATED, blocks_before_answer, positions_of, prompt_blocks
from model.masks import Layout, last_visible
from model.moe import drop_router_biases
from model.strategies import CAUSAL, NO_PART, strategy_named

MODELLING = Path(__file__).with_name("modeling_sightline.py")
FOR_PASSAGES = Path(__file__).with_name("modeling_passages.py")
PASSAGE_MARKS = RESERVED[:2]
"""tokens without a meaning that stand before and after each passage in an export, and in no training"""
LARGEST_DIFFERENCE = 1e-4
"""between our logits and those of what was written, as a share of the largest one"""
PROBE = (
    *(Message("user", "Where is Ada?"), Message("assistant", "在花园里。")),
    *(Message("user", "And Bo?\nTell me."), Message("assistant", "In the house.")),
)
WITH_PASSAGES = (
    Message("user", "Pick:\na rose\ngold, or tin", passages=((5, 12), (12, 16))),
    *(
        Message("assistant", "gold"),
        Message("user", "金\nAgain?", passages=((0, 2),)),
        Message("assistant", "金"),
    ),
)


def export(model: str, out: str, for_engine: str = "any", drops_router_bias: bool = False) -> str:
    """Write a model for transformers and return what can be done with it, in words.

    `for_engine` is transformers where nothing else will open it; the biases of routers are dropped where that
    is asked for. Raises `UserError` for what an engine would ignore without a word, and for what
    `export_checkpoint` refuses.
    """
    served = open_model(model, device="cpu")  # raises where model and tokenizer do not fit
    if drops_router_bias:
        drop_router_biases(served.model)
    config, kind = served.model.config, kind_for(served.model.config)
    if config.router_bias:
        raise UserError(
            f"{model} chooses experts by a bias, too, for which transformers has no place; add "
            "--drop_router_bias true to leave it out, and measure what that changes by scripts.evaluate"
        )
    is_stock_qwen3 = config.prompt_mask == "causal" and config.architecture.startswith("qwen3")
    if is_stock_qwen3 and config.sliding_window and for_engine == "any":
        raise UserError(
            f"{model} has sliding windows, which vLLM, SGLang and llama.cpp ignore: they would give "
            "other answers without a word; add --for_engine transformers if nothing else will open it"
        )
    with whole_folder(out) as folder:
        if kind and config.prompt_mask != "causal":
            export_with_mask(served, kind, folder, drops_router_bias)
            return (
                f"is written: transformers opens it with trust_remote_code=True, under prompt_mask "
                f"{config.prompt_mask}; vLLM, SGLang and text-generation-inference have no such mask, for "
                "llama.cpp there is scripts.export_gguf"
            )
        export_checkpoint(model, folder, drops_router_bias)
        served.tokenizer.save(folder)
    return f"is written: {kind.class_name} of transformers opens it"


def export_with_mask(served: ServedModel, kind: Kind, folder: Path, drops_router_bias: bool) -> None:
    """Write a model with its prompt mask for transformers, and compute with what was written.

    Raises `UserError` where messages or passages could not be told apart there, and for what
    `export_checkpoint` refuses.
    """
    renderer, config = Renderer(served.tokenizer), served.model.config
    has_passages = strategy_named(config.prompt_mask).passages != "open"
    marks = marks_of_passages(served) if has_passages else marks_of(renderer)
    mask = {"prompt_mask": config.prompt_mask, "window_both_sides": config.window_both_sides}
    classes = {"AutoConfig": "SightlineConfig", "AutoModelForCausalLM": "SightlineForCausalLM"}
    values = {
        "model_type": MASKED + kind.model_type,
        "architectures": [classes["AutoModelForCausalLM"]],
        "auto_map": {auto: f"{MODELLING.stem}.{name}" for auto, name in classes.items()},
        "sightline": mask | marks,
    }
    trained_on = {"trained_on": served.trained_on} if served.trained_on else {}
    export_checkpoint(served.path, folder, drops_router_bias, values | trained_on)
    served.tokenizer.save(folder)
    (folder / MODELLING.name).write_text(modelling_code(config.prompt_mask, kind), encoding="utf-8")
    if has_passages:
        for template in (folder / name for name in TEMPLATE_FILES):
            plain = text_in(template).removeprefix(MARKS_PASSAGES)  # of an export, too
            template.write_text(MARKS_PASSAGES + plain, encoding="utf-8")
        check_passages(served, renderer, folder)
    else:
        check_export(served, renderer, folder)


def marks_of(renderer: Renderer) -> dict[str, Any]:
    """Return the ids by which the messages of a conversation are told apart.

    Raises `UserError` where no mark stands before an answer.
    """
    headers = {role: ids for role, ids in renderer.headers.items() if ids}
    if (answer := headers.pop("assistant", None)) is None:
        raise UserError(
            "the chat template of the tokenizer has no mark before answers, by which another engine could "
            "find the blocks of the prompt mask; export a model with prompt_mask causal"
        )
    answers = [answer + renderer.opening, answer] if renderer.opening else [answer]
    return {"answer_headers": answers, "headers": [*headers.values()], "end": renderer.tokenizer.im_end_id}


def marks_of_passages(served: ServedModel) -> dict[str, Any]:
    """Return the ids by which passages are told apart.

    Raises `UserError` for a model with windows, and for a tokenizer or template that cannot mark passages.
    """
    if served.model.config.sliding_window:
        raise UserError(
            f"{served.path} has sliding windows: caches of transformers keep the last tokens, but passages "
            "share positions, so that others are near; train without windows to export, or serve it here"
        )
    ids = [served.tokenizer.added_ids.get(text) for text in PASSAGE_MARKS]
    if served.tokenizer.form != ChatForm(prompt_copies=served.tokenizer.prompt_copies) or None in ids:
        raise UserError(
            f"{served.path}: another engine finds passages by {' and '.join(PASSAGE_MARKS)}, which its "
            "tokenizer or chat template has not; train with a tokenizer of scripts.train_tokenizer to export"
        )
    return {"passages": {"marks": ids, "alone": served.prompt_mask == "isolated"}}


def modelling_code(prompt_mask: str, kind: Kind) -> str:
    """Return the modelling file for a kind of transformers, with the function of a strategy in it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    strategy = strategy_named(prompt_mask)
    if strategy.passages == "open":
        code, function = MODELLING.read_text(encoding="utf-8"), strategy.block
        names = f"CAUSAL = {CAUSAL}"
        ours = f"{names}\n\n\n{inspect.getsource(function)}\n\nblock = {function.__name__}\n"
    else:
        code, function = FOR_PASSAGES.read_text(encoding="utf-8"), positions_of
        names = f"NO_PART, FIRST_ISOLATED = {NO_PART}, {FIRST_ISOLATED}"
        ours = f"{names}\n\n\n{inspect.getsource(function)}"
    code = code.replace("Qwen3Config as", f"{CONFIG_MAPPING_NAMES[kind.model_type]} as")
    code = code.replace("Qwen3ForCausalLM as", f"{kind.class_name} as")
    return re.sub(r"(from model\..* import .*\n)+", lambda _: ours, code)


def check_export(served: ServedModel, renderer: Renderer, folder: Path) -> None:
    """Raise `UserError` unless blocks of what was written are ours; logits of it must be, too."""
    written = _opened(folder)
    for messages, asks in ((PROBE, False), (PROBE[:-1], True)):
        rendered = renderer.render(messages, asks)
        ids, layout = torch.from_numpy(rendered.ids.astype("int64"))[None], _layout(rendered, served, asks)
        if not torch.equal(*map(last_visible, (written.find_blocks(ids)[0], layout.block_ids[0]))):
            raise UserError(
                "the marks of the chat template do not tell messages apart as training did; export a model "
                "with prompt_mask causal"
            )
        with torch.no_grad():
            check_logits(served.model.cpu()(ids, layout), written(ids).logits)


def check_passages(served: ServedModel, renderer: Renderer, folder: Path) -> None:
    """Raise `UserError` unless transformers gives passages our ids; logits of them must be ours, too."""
    from transformers import PreTrainedTokenizerFast

    written, tokenizer = _opened(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    rendered = renderer.render(WITH_PASSAGES)
    messages = [{"role": each.role, "content": in_parts(each)} for each in WITH_PASSAGES]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    kept = ~torch.isin(ids, torch.tensor(written.config.sightline["passages"]["marks"]))
    ours = torch.from_numpy(rendered.ids.astype("int64"))[None]
    if ids[kept].tolist() != ours[0].tolist():
        raise UserError(f"{served.path}: transformers gives text beside passages other ids than training did")
    with torch.no_grad():
        expected = served.model.cpu()(ours, layout_of(rendered, served.prompt_mask))
        check_logits(expected[0], written(ids).logits[kept])


def in_parts(message: Message) -> list[dict[str, str]]:
    """Return the content of a message with its passages as parts of their own."""
    ends = [0, *(end for passage in message.passages for end in passage), len(message.content)]
    texts = [message.content[begin:end] for begin, end in pairwise(ends)]
    return [{"type": ("text", "passage")[n % 2], "text": text} for n, text in enumerate(texts)]


def check_logits(ours: Tensor, theirs: Tensor) -> None:
    """Raise `RuntimeError` where logits differ by more than rounding explains."""
    if (difference := (ours - theirs).abs().max() / ours.abs().max()) > LARGEST_DIFFERENCE:
        raise RuntimeError(f"logits of the written model differ from ours by {difference:.1e}")


def _layout(rendered: Rendered, served: ServedModel, asks: bool) -> Layout:
    """Return the layout (1, n) of a conversation under the mask of its model."""
    answers, starts = torch.from_numpy(rendered.targets), torch.from_numpy(rendered.starts)
    blocks = (blocks_before_answer if asks else prompt_blocks)(served.prompt_mask, answers, starts)[None]
    return Layout(torch.zeros_like(blocks), torch.arange(blocks.shape[1])[None], blocks)


def _opened(folder: Path) -> Any:
    """Return the model that transformers makes of a folder, without leaving a copy of its code elsewhere."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    spec = spec_from_file_location(MODELLING.stem, folder / MODELLING.name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SightlineForCausalLM.from_pretrained(folder).eval()
