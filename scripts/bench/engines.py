"""Ways to answer prompts greedily with the same random weights: our own, transformers and llama.cpp."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch
from transformers import Qwen3ForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from dataset.tokenizer import SMALLEST_VOCAB, train_tokenizer
from eval.served_model import ServedModel
from model.checkpoint import export_checkpoint, load_checkpoint, save_checkpoint
from model.config import ModelConfig, Weights
from model.decoding import Steps
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.sampling import Sampling
from model.serving import store_weights
from model.systems import compiler_fault
from model.transformer import LanguageModel
from scripts.bench.decode import Workload

LLAMA_CPP = {"float32": "f32", "bfloat16": "f16", "int8": "q8_0"}
"""what has as many bits there"""
Tell = Callable[[int], None]
"""takes the number of rows that have just got a token"""
Engine = Callable[[Workload, Tell], None]


def make_engines(
    config: ModelConfig, weights: Weights, compiles: bool, folder: Path
) -> tuple[dict[str, Engine], str]:
    """Return engines over the same fresh weights, which pass through `folder`, and how ours computes.

    Theirs knows no int8 and takes bfloat16 instead; llama.cpp, where it is installed, has our number of bits.
    """
    logging.disable_progress_bar()
    torch.manual_seed(0)
    save_checkpoint(folder / "ours", LanguageModel(config))
    export_checkpoint(folder / "ours", folder / "theirs")
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    theirs = Qwen3ForCausalLM.from_pretrained(folder / "theirs", dtype=dtype).eval()
    theirs.generation_config.eos_token_id = None
    model = load_checkpoint(folder / "ours").model
    steps, form = Steps(model), store_weights(model, weights)
    if compiles:
        if fault := compiler_fault(torch.device("cpu")):
            raise UserError(f"nothing can be compiled here ({fault}); install g++, or give --compile false")
        form += "".join(f", decoding {steps.compile(for_one_row)}" for for_one_row in (True, False))
    engines = {"ours": answering(Generator(model, stop_ids=(), step=steps)), "theirs": _theirs(theirs)}
    if find_spec("llama_cpp") and config.vocab_size > SMALLEST_VOCAB:
        engines["llama.cpp"] = _llama_cpp(folder, weights)
    return engines, form


def answering(generator: Generator) -> Engine:
    """Return a generator of ours as an engine."""

    def answer(task: Workload, tell: Tell) -> None:
        def told(token: int) -> bool:
            tell(1)
            return False

        generator.generate(
            [
                Request(Prompt(ids, (-1,) * len(ids)), Sampling(max_new_tokens=n), told)
                for ids, n in zip(task.prompts, task.lengths, strict=True)
            ],
            task.rows,
        )

    return answer


class _Told(StoppingCriteria):
    """Never stops, but says that every row has got a token."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        self._tell(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _theirs(model: Qwen3ForCausalLM) -> Engine:
    """Answer batch after batch, padded on the left; each goes on until its longest answer is there."""

    def answer(task: Workload, tell: Tell) -> None:
        for first in range(0, len(task.prompts), task.rows):
            prompts = task.prompts[first : first + task.rows]
            longest = max(map(len, prompts))
            padded = torch.tensor([[-1] * (longest - len(ids)) + list(ids) for ids in prompts])
            model.generate(
                padded.clamp(min=0),
                attention_mask=(padded >= 0).long(),
                max_new_tokens=max(task.lengths[first : first + task.rows]),
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([_Told(tell)]),
            )

    return answer


def _llama_cpp(folder: Path, weights: Weights) -> Engine:
    """Answer prompt after prompt as users of llama-cpp-python do."""
    from eval.engines.gguf_file import write_gguf
    from eval.engines.llama_engine import load_library

    model, tokenizer = load_checkpoint(folder / "ours").model, train_tokenizer(["Paris"], SMALLEST_VOCAB + 1)
    served = ServedModel(model, tokenizer, tokenizer.stop_ids, folder / "ours")
    write_gguf(served, folder / "model.gguf", LLAMA_CPP[weights])
    library, threads = load_library(), torch.get_num_threads()
    cached = library.GGML_TYPE_F32 if weights == "float32" else library.GGML_TYPE_F16
    sizes = {"n_ctx": model.config.max_position_embeddings, "n_threads": threads, "n_threads_batch": threads}
    sizes |= {"type_k": cached, "type_v": cached}
    llama = library.Llama(str(folder / "model.gguf"), **sizes, verbose=False)

    def answer(task: Workload, tell: Tell) -> None:
        for ids, length in zip(task.prompts, task.lengths, strict=True):
            llama.reset()  # else it would go on behind what it has read of the same prompt
            for _ in islice(llama.generate(ids, temp=0.0), length):
                tell(1)

    return answer
