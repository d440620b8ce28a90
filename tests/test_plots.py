"""Pictures show what the masks are, and hold no character that the fonts here cannot draw."""

import torch
from matplotlib.image import imread

from eval import plots
from eval.look import attention_maps
from eval.plots import mask_panel, model_panels, passage_panels, save_attention, save_masks, strategy_panels
from model.config import from_preset
from model.pattern import Pattern
from tests.conftest import STRATEGIES, one_document, windowed
from tests.serving import served_model


def pixels_of(path, colour: str) -> int:
    """Count the pixels of a picture that have the colour of a kind of cell."""
    pixels = (imread(path)[..., :3] * 255).round()
    return int((pixels == list(bytes.fromhex(plots.COLOURS[colour][1:]))).all(-1).sum())


def test_the_example_shows_all_strategies_apart():
    panels, labels = strategy_panels()
    options, names = passage_panels()
    assert [panel.title for panel in panels + options[1:]] == list(STRATEGIES)
    assert len({panel.mask.numpy().tobytes() for panel in panels}) == len(panels)
    assert len({panel.mask.numpy().tobytes() for panel in options}) == 3
    assert names[9] == "Tea"
    lines = ["".join("01"[cell] for cell in panel.mask[10].int().tolist()) for panel in options]
    assert lines == ["1" * 11 + "000", "1111" + "0" * 5 + "11000", "0" * 9 + "11000"]
    assert labels[8:11] == ["[assistant]", "Lima", "[end]"]
    blocks = {panel.title: panel.block_ids[8:11].tolist() for panel in panels}
    by_hand = {"causal": [-1, -1, -1], "prefix": [0, -1, -1], "segment": [1, -1, -1], "history": [0, 0, 0]}
    assert blocks | by_hand == blocks


def test_cells_of_a_picture_tell_block_and_past_apart():
    kinds = plots._cell_kinds(mask_panel("prefix", one_document(torch.tensor([0, 0, -1]))))
    assert kinds.tolist() == [[2, 3, 0], [2, 2, 0], [1, 1, 1]]
    kinds = plots._cell_kinds(mask_panel("prefix", one_document(torch.tensor([0, 0, -1])), Pattern(2)))
    assert kinds.tolist() == [[2, 3, 0], [2, 2, 0], [0, 1, 1]]
    config = from_preset("tiny", vocab_size=9, **windowed(2, None, both_sides=True))
    full, sliding = (
        plots._cell_kinds(p) for p in model_panels("", one_document(torch.tensor([0, 0, 0])), config)
    )
    assert full.tolist() == [[2, 3, 3], [2, 2, 3], [2, 2, 2]]
    assert sliding.tolist() == [[2, 3, 0], [2, 2, 3], [0, 2, 2]]


def test_a_mixed_model_is_drawn_with_a_panel_for_each_kind_of_layer():
    layout = one_document(torch.tensor([0, 0, -1]))
    for windows, titles in (
        ((None, None), ["prefix"]),
        ((2, 2), ["prefix"]),
        ((2, None, 2), ["prefix, full", "prefix, sliding"]),
    ):
        panels = model_panels("prefix", layout, from_preset("tiny", vocab_size=9, **windowed(*windows)))
        assert [panel.title for panel in panels] == titles
        assert panels[-1].mask[2, 0] == (2 not in windows) and panels[0].mask[2, 0] == (None in windows)


def test_a_mask_becomes_a_file_with_every_colour_of_its_cells(tmp_path):
    prefix, causal = tmp_path / "new" / "prefix.png", tmp_path / "new" / "causal.png"
    save_masks(prefix, [mask_panel("prefix", one_document(torch.tensor([0, 0, 0, -1, -1])))], list("abcde"))
    save_masks(causal, [mask_panel("causal", one_document(torch.full((5,), -1)))], list("abcde"))
    in_legend = pixels_of(causal, "own block, later")
    assert in_legend > 0
    assert pixels_of(prefix, "own block, later") > 4 * in_legend
    assert pixels_of(prefix, "earlier token") > in_legend and pixels_of(prefix, "hidden") > in_legend


def test_rows_of_hundreds_of_tokens_are_drawn_without_labels():
    for tokens, labels in ((150, 150), (151, 0)):
        axes = plots._figure(3, 3).add_subplot()
        plots._label_tokens(axes, ["word"] * tokens, rows=True)
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == labels
    assert plots._side(4000) < plots._side(150) < 30


def test_attention_of_a_model_is_drawn_for_every_layer(tmp_path):
    served = served_model("prefix")
    ids = torch.arange(6)[None]
    maps = attention_maps(served.model, ids)
    assert len(maps) == served.model.config.num_hidden_layers
    save_attention(tmp_path / "attention.png", {"causal": maps, "same": maps}, list("abcdef"))
    assert imread(tmp_path / "attention.png").std() > 0


def test_what_no_font_draws_is_numbered_and_said_once_with_a_font_that_does(monkeypatch, capsys):
    plots._tell_missing.cache_clear()
    assert plots._drawable(["Lima", "\\n", "\x1b"]) == ["Lima", "\\n", "\\x1b"]
    monkeypatch.setattr(plots, "_has_glyph", str.isascii)
    for _ in range(2):
        assert plots._drawable(["a", "a法国", "b", "\x1b国"]) == ["a", "#1", "b", "#3"]
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("note: no font here draws a法国: 2 tokens have numbers") and "fonts-noto-cjk" in line
    )


def test_the_picture_of_attention_says_what_it_shows_and_has_a_bar_of_colours(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: drawn.append(figure))
    maps = [torch.full((1, 2, 26, 26), 1 / 26)] * 2
    save_attention(tmp_path / "attention.png", {"$x^$\x1b": maps}, ["$\\frac$"] * 26)
    [figure] = drawn
    *panels, bar = figure.axes
    assert figure.get_suptitle() == "Attention: the token of the row looks at the token of the column"
    assert bar.get_ylabel() == "probability, mean of all heads"
    assert [axes.get_title() for axes in panels] == [f"$x^$\\x1b, layer {n}" for n in (0, 1)]
    for axes in panels:
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == 26
    figure.savefig(tmp_path / "attention.png")  # a dollar begins no formula


def test_a_glyph_is_there_exactly_if_a_font_has_it():
    assert plots._has_glyph("A") and not plots._has_glyph("\U000e0041")
    assert plots._has_glyph("法") == bool(plots._han_fonts())
