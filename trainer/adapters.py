"""Adapters in training (LoRA): put beside frozen weights by `peft`, saved and taken up again without these.

What `transformers` has as one module may be several here: queries, keys and values of GPT-2 are

        [A_q]          [B_q  0   0 ]
    A = [A_k]      B = [ 0  B_k  0 ]      of rank 3 r, which is exact
        [A_v]          [ 0   0  B_v]
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.adapter import BASE, Adapter, Factors, is_adapter, read_adapter
from model.checkpoint import save_adapter
from model.errors import UserError
from model.hugging_face import kind_for
from model.moe import MixtureOfExperts
from model.transformer import DecoderLayer, LanguageModel
from trainer.settings import LoraSettings

NUMBER = re.compile(r".*\.\d+\.")
"""what stands before the name of a module in its layer"""


class AdaptedModel:
    """A model whose weights are frozen, with factors of its linear layers that train."""

    def __init__(
        self, model: LanguageModel, settings: LoraSettings, base: str, fingerprint: str, seed: int
    ) -> None:
        """Put factors into a model from the directory `base`; the first product of each pair is zero.

        Raises `UserError` for names that no linear layer has, and for a base that is an adapter itself.
        """
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds

        if is_adapter(Path(base)):
            raise UserError(
                f"--init {base} holds an adapter; expected whole weights under another one: first python -m "
                f"scripts.export_hf --model {base}, or leave --lora.rank out to train the sum"
            )
        self._model, self._base, self._fingerprint = model, str(Path(base).absolute()), fingerprint
        self._linears = linears_of(model)
        self._rank, self._alpha = settings.rank, settings.alpha or 2 * settings.rank
        self._dropout = settings.dropout or 0.0
        torch.manual_seed(seed)
        names = chosen(self._linears, settings.target_modules)
        config = LoraConfig(
            r=self._rank, lora_alpha=self._alpha, lora_dropout=self._dropout, target_modules=names
        )
        inject_adapter_in_model(config, model)
        layers = {name: model.get_submodule(name) for name in names}
        self._factors = {
            name: Factors(each.lora_A["default"].weight, each.lora_B["default"].weight)
            for name, each in layers.items()
        }

    @property
    def num_parameters(self) -> int:
        """Count what trains."""
        return sum(tensor.numel() for pair in self._factors.values() for tensor in pair)

    def describe(self, state: dict[str, Tensor]) -> list[str]:
        """Return what is trained and what it takes, in lines; `state` is that of the optimizers."""
        trained, total = self.num_parameters, self._model.num_parameters()
        ends = " ".join(dict.fromkeys(name.rpartition(".")[2] for name in self._factors))
        megabytes = (each / 1e6 for each in (4 * total, 4 * trained, sum(t.nbytes for t in state.values())))
        weights, gradients, remembered = map("{:,.1f} MB".format, megabytes)
        return [
            f"lora       {trained:,} parameters train, {trained / total:.2%}; rank {self._rank}, alpha "
            f"{self._alpha}, on {ends}",
            f"           weights {weights}, gradients {gradients}, state of the optimizer {remembered}",
        ]

    def save(self, folder: Path, stop_ids: Sequence[int], trained_on: str) -> None:
        """Write the adapter without the weights beside it, in the format of `peft`."""
        parts = dict(self._parts())
        joined = {
            module: Factors(torch.cat([a for a, _ in pairs]), torch.block_diag(*(b for _, b in pairs)))
            for module, pairs in parts.items()
        }
        adapter = Adapter(joined, self._values(joined))
        config = self._model.config
        save_adapter(folder, adapter, config, self._fingerprint, stop_ids, trained_on)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Go back to factors that were saved; raises `UserError` for those of another training."""
        saved = read_adapter(folder).factors
        parts = dict(self._parts())
        shapes = {
            module: (sum(len(a) for a, _ in pairs), sum(len(b) for _, b in pairs))
            for module, pairs in parts.items()
        }
        if shapes != {module: (len(a), len(b)) for module, (a, b) in saved.items()}:
            raise UserError("its adapter has factors of other layers or ranks than those of this training")
        for module, pairs in parts.items():
            ranks, sizes = [len(a) for a, _ in pairs], [len(b) for _, b in pairs]
            of_inputs, of_outputs = saved[module].a.split(ranks), saved[module].b.split(sizes)
            for n, (a, b) in enumerate(pairs):
                a.copy_(of_inputs[n])
                b.copy_(of_outputs[n].split(ranks, dim=1)[n])

    def _parts(self) -> Iterator[tuple[str, list[Factors]]]:
        """Yield the adapted modules of `transformers`, each with the factors of those of ours that it is.

        Of a part that is not adapted, they have rank 0.
        """
        kind, found = kind_for(self._model.config), defaultdict(list)
        for name in self._linears:
            found[kind.their_module(name) if kind else name].append(name)
        for module, names in found.items():
            if self._factors.keys() & names:
                yield module, [self._factors.get(name) or _none_of(self._linears[name]) for name in names]

    def _values(self, factors: dict[str, Factors]) -> dict[str, Any]:
        """Return the configuration of `peft` for factors by the modules of `transformers`."""
        from peft import LoraConfig

        kind = kind_for(self._model.config)
        ranks = {NUMBER.sub("", module): len(a) for module, (a, _) in factors.items()}
        others = {end: rank for end, rank in ranks.items() if rank != self._rank}
        config = LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,
            lora_dropout=self._dropout,
            rank_pattern=others,
            alpha_pattern={end: self._alpha * rank // self._rank for end, rank in others.items()},
            fan_in_fan_out=bool(kind and kind.is_transposed),
            task_type="CAUSAL_LM",
        )
        return config.to_dict() | {BASE: self._base, "target_modules": sorted(ranks), "inference_mode": True}


def linears_of(model: LanguageModel) -> dict[str, nn.Linear]:
    """Return the linear layers that may be adapted, by name: all in the layers but experts and routers.

    `transformers` has the experts of a layer as one tensor, which an adapter of layers does not fit.
    """
    found, taken = {}, set()
    for name, part in model.named_modules():
        if isinstance(part, MixtureOfExperts):
            taken |= {*part.modules()}
        if isinstance(part, DecoderLayer):
            found |= {f"{name}.{inner}": each for inner, each in part.named_modules()}
    return {name: each for name, each in found.items() if type(each) is nn.Linear and each not in taken}


def chosen(linears: dict[str, nn.Linear], ends: Sequence[str] | None) -> list[str]:
    """Return the names of linear layers with one of these ends, of all without; each end must have one."""
    known = dict.fromkeys(name.rpartition(".")[2] for name in linears)
    if wrong := [end for end in ends or () if end not in known]:
        raise UserError(f"--lora.target_modules: expected some of {' '.join(known)}, got {' '.join(wrong)}")
    return [name for name in linears if ends is None or name.rpartition(".")[2] in ends]


def _none_of(linear: nn.Linear) -> Factors:
    return Factors(linear.weight[:0].detach(), linear.weight[:, :0].detach())
