"""Masks as text and as PNG files, and where trained models look; decides no visibility."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.cells import cell_len
from torch import Tensor

from dataset.printing import printable, tell
from eval.tables import padded
from model.config import WITH_ENCODER, ModelConfig
from model.encoder_decoder import is_source
from model.errors import UserError
from model.files import replacing
from model.layouts import FIRST_ISOLATED, conversation_layout
from model.masks import Layout, draw_text, visible_mask
from model.pattern import ALL, Pattern
from model.strategies import NO_PART, STRATEGIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008), which colour-blind readers can tell apart.
COLOURS = {
    "hidden": "#f2f2f2",
    "earlier token": "#56b4e9",
    "own block, earlier": "#f5d089",
    "own block, later": "#e69f00",
}
GAP = " " * 3  # between masks as text
MOST_LABELS = 150  # tokens; longer rows are drawn small and without labels
# whichever is installed; none comes with the project
HAN_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Serif CJK SC", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "AR PL UMing CN"),
    *("PingFang SC", "Hiragino Sans GB", "Heiti SC", "STHeiti", "Songti SC", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "SimSun"),
)
FEW_LABELS = 24  # tokens up to which only the outer panels name them, as all fit on a screen

# a short chat of (is answer, tokens); a header is drawn as one token, and of the ends only those of answers
Example = tuple[tuple[bool | str, ...], ...]
EXAMPLE: Example = (
    (False, "[system] Be brief"),
    (False, "[user] Capital of Peru ? [assistant]"),
    (True, "Lima [end]"),
    (False, "[user] Its currency ? [assistant]"),
    (True, "sol [end]"),
)
OPTIONS: Example = (  # what follows the first text of a message are passages; headers of answers come after
    (False, "[user] A city ?", "Lima .", "The Andes .", "Tea ."),
    (False, "[assistant]"),
    (True, "Lima [end]"),
)


@dataclass(frozen=True)
class MaskPanel:
    """One mask to draw."""

    title: str
    mask: Tensor
    """bool (T, T), True = may attend"""
    block_ids: Tensor
    """(T,), -1 = causal"""


def strategy_panels() -> tuple[list[MaskPanel], list[str]]:
    """Return the masks of all strategies over the example chat, and its token labels."""
    return _panels([name for name, each in STRATEGIES.items() if each.passages == "open"], EXAMPLE)


def passage_panels() -> tuple[list[MaskPanel], list[str]]:
    """Return the causal mask, and those of strategies that know passages, over a chat with three of them."""
    know_passages = (name for name, each in STRATEGIES.items() if each.passages != "open")
    return _panels(["causal", *know_passages], OPTIONS)


def _panels(names: list[str], example: Example) -> tuple[list[MaskPanel], list[str]]:
    tokens = [
        (label, is_answer, n == place == 0 and not is_answer, place - 1)
        for is_answer, *texts in example
        for place, text in enumerate(texts)
        for n, label in enumerate(text.split())
    ]
    labels, answers, starts, passages = zip(*tokens, strict=True)
    marks = torch.tensor(answers), torch.tensor(starts), np.array(passages)
    panels = [mask_panel(name, conversation_layout(name, *marks)) for name in names]
    return panels, list(labels)


def mask_panel(title: str, layout: Layout, pattern: Pattern = ALL) -> MaskPanel:
    """Return the panel of one conversation, unpacked, of this layout (1, T)."""
    return MaskPanel(title, visible_mask(layout, pattern)[0], layout.block_ids[0])


def model_panels(title: str, layout: Layout, config: ModelConfig) -> list[MaskPanel]:
    """Return the mask of a conversation (1, T) in a model: one panel, or one for each kind of its layers."""
    if config.architecture in WITH_ENCODER:  # all layers together: the encoder reads no target
        panel, of_source = mask_panel(title, layout), is_source(layout)[0]
        return [replace(panel, mask=panel.mask & ~(of_source[:, None] & ~of_source))]
    if len(patterns := set(config.layer_patterns)) == 1:
        return [mask_panel(title, layout, *patterns)]
    return [
        mask_panel(f"{title}, full", layout),
        mask_panel(f"{title}, sliding", layout, config.local_pattern),
    ]


def draw_mask(mask: Tensor, labels: Sequence[str]) -> str:
    """Draw a mask (T, T), a line per token behind its label; wide characters keep the columns straight."""
    width = max(map(cell_len, labels))
    lines = draw_text(mask).split("\n")
    names = (padded(label, width, is_right=True) for label in labels)
    return "\n".join(f"{name}  {line}" for name, line in zip(names, lines, strict=True))


def draw_masks(masks: dict[str, Tensor], labels: Sequence[str], width: int) -> str:
    """Draw masks (T, T) under their titles: close together and side by side if `width` characters allow."""
    margin, side = max(map(cell_len, labels)) + 2, max(len(labels), *map(cell_len, masks))
    if margin + len(masks) * (side + len(GAP)) > width:
        return "\n\n".join(f"{title}\n{draw_mask(mask, labels)}" for title, mask in masks.items())
    drawn = (draw_text(mask).replace(" ", "").split("\n") for mask in masks.values())
    columns = [[line.ljust(side) for line in lines] for lines in drawn]
    titles = " " * margin + GAP.join(title.ljust(side) for title in masks)
    names = (padded(label, margin - 2, is_right=True) + "  " for label in labels)
    rows = (name + GAP.join(lines) for name, *lines in zip(names, *columns, strict=True))
    return "\n".join([titles, *rows])


def describe_blocks(layout: Layout) -> str:
    """Return the runs of blocks and passages of a row (1, T) in words: `0-13 in block 0, 14-20 causal`."""
    no_parts = torch.full_like(layout.block_ids, NO_PART)
    parts = no_parts if layout.part_ids is None else layout.part_ids
    runs, begin = [], 0
    for (block, part), run in groupby(zip(layout.block_ids[0].tolist(), parts[0].tolist(), strict=True)):
        end = begin + len([*run])
        runs.append(f"{begin}-{end - 1} {_named(block, part)}")
        begin = end
    return ", ".join(runs)


def _named(block: int, part: int) -> str:
    if part != NO_PART:
        return f"passage {part}" if part > NO_PART else f"passage {FIRST_ISOLATED - part} by itself"
    return "causal" if block < 0 else f"in block {block}"


def save_masks(path: str | Path, panels: Sequence[MaskPanel], labels: Sequence[str]) -> None:
    """Draw masks side by side: a row per token that looks, a column per token that is seen."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    side = _side(len(labels))
    names = _drawable(labels)
    figure = _figure((side + 0.3) * len(panels) + 1.0, side + 1.6)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        colours = ListedColormap(list(COLOURS.values()))
        axes.imshow(_cell_kinds(panel).numpy(), cmap=colours, vmin=0, vmax=len(COLOURS) - 1)
        _label_tokens(axes, names, rows=i == 0)
        axes.set_title(printable(panel.title), fontsize=12, fontweight="bold", pad=8, parse_math=False)
    legend = [Patch(facecolor=colour, edgecolor="#999999", label=name) for name, colour in COLOURS.items()]
    figure.legend(
        handles=legend,
        title="the token of the row sees the token of the column:",
        loc="outside lower center",
        ncols=2 if len(panels) == 1 else len(legend),
        frameon=False,
        fontsize=10,
    )
    _write(figure, path)


def save_attention(path: str | Path, maps: dict[str, Sequence[Tensor]], labels: Sequence[str]) -> None:
    """Draw where models look: a row per model, a column per layer, probabilities averaged over heads.

    `maps` holds for each title one tensor (1, H, T, T) per layer. Colour goes with the square root of the
    probability, so that small ones show.
    """
    from matplotlib.colors import PowerNorm

    num_layers, names = max(len(layers) for layers in maps.values()), _drawable(labels)
    side, everywhere = _side(len(labels)), len(labels) > FEW_LABELS
    figure = _figure((side + 0.8) * num_layers + 1.5, (side + 0.8) * len(maps) + 1.2)
    scale, size = PowerNorm(0.5, vmin=0, vmax=1), max(10, 2 * side)  # read when a large picture is shrunk
    for i, (title, layers) in enumerate(maps.items()):
        for j, probabilities in enumerate(layers):
            axes = figure.add_subplot(len(maps), num_layers, i * num_layers + j + 1)
            image = axes.imshow(probabilities[0].mean(0).float().cpu().numpy(), cmap="cividis", norm=scale)
            _label_tokens(axes, names, rows=j == 0 or everywhere, columns=i == 0 or everywhere)
            axes.set_title(f"{printable(title)}, layer {j}", fontsize=size, parse_math=False)
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, aspect=30)
    bar.set_label("probability, mean of all heads", fontsize=size)
    bar.ax.tick_params(labelsize=size)
    figure.suptitle("Attention: the token of the row looks at the token of the column", fontsize=size + 2)
    _write(figure, path)


def _side(num_tokens: int) -> float:
    """Return the side of a panel in inches: room for a label per token, where there are labels."""
    return max(2.4, 0.19 * num_tokens) if num_tokens <= MOST_LABELS else 8.0


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    return Figure(figsize=(width, height), layout="constrained")


def check_picture(path: str | Path) -> None:
    """Raise `UserError` unless the path names a PNG file."""
    if Path(path).suffix.lower() != ".png" or Path(path).is_dir():
        raise UserError(f"expected the name of a .png file for the picture, got {path}")


def _write(figure: "Figure", path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")


def _cell_kinds(panel: MaskPanel) -> Tensor:
    """Return the index into `COLOURS` of each cell (T, T); a later token is seen in one's own block only."""
    index = torch.arange(len(panel.mask))
    is_later = index[None, :] > index[:, None]
    same_block = (panel.block_ids[:, None] == panel.block_ids) & (panel.block_ids >= 0)
    return torch.where(panel.mask, 1 + same_block.long() + is_later, 0)


def _label_tokens(axes, labels: Sequence[str], rows: bool, columns: bool = True) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if len(labels) > MOST_LABELS:
        axes.set(xticks=[], yticks=[])
        return
    names, ticks = labels, range(len(labels))
    style = {"fontsize": 8, "family": ["DejaVu Sans", *_han_fonts()], "parse_math": False}
    axes.set_yticks(ticks if rows else [], names if rows else [], **style)
    axes.set_xticks(ticks if columns else [], names if columns else [], rotation=90, **style)
    axes.tick_params(labeltop=columns, labelbottom=False)
    edges, first, last = [t - 0.5 for t in ticks], -0.5, len(names) - 0.5
    for draw_lines in (axes.hlines, axes.vlines):  # a grid of minor ticks takes seconds to lay out
        draw_lines(edges, first, last, color="white", linewidth=0.6)


def _drawable(labels: Sequence[str]) -> list[str]:
    """Return labels that fonts here can draw, in place of the others the numbers of their tokens; say so."""
    shown = [printable(label) for label in labels]
    names = [label if all(map(_has_glyph, label)) else f"#{n}" for n, label in enumerate(shown)]
    if missing := [label for label, name in zip(shown, names, strict=True) if label != name]:
        _tell_missing(len(missing), missing[0])
    return names


@cache  # two pictures of the same tokens say it once
def _tell_missing(count: int, example: str) -> None:
    fonts = "for Chinese fonts-noto-cjk (apt) or google-noto-sans-cjk-fonts (dnf)"
    fault = f"no font here draws {example}: {count} tokens have numbers in the pictures"
    tell(f"note: {fault}; install a font that does, {fonts}")


@cache
def _han_fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in HAN_FONTS if name in installed]


@cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    families = ["DejaVu Sans", *_han_fonts()]
    return any(get_font(findfont(name)).get_char_index(ord(character)) for name in families)
