"""The loss in chunks, against the loss as a whole."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import model.loss
from model.loss import summed_cross_entropy


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch):
    """Seven rows a chunk, at 50 words."""
    monkeypatch.setattr(model.loss, "FEWEST_STATES", 1)
    monkeypatch.setattr(model.loss, "LOGITS_AT_ONCE", {"cpu": 7 * 50})


def example(dtype: torch.dtype, length: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.randn(3, length, 8, dtype=dtype), torch.randn(50, 8, dtype=dtype)
    labels = torch.randint(50, (3, length)).masked_fill(torch.rand(3, length) < 0.4, -100)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def whole_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = (hidden @ weight.T)[:, :-1].flatten(0, 1)
    return cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * 0.3, inputs)


@pytest.mark.parametrize("length", [2, 3, 20])
def test_chunks_give_loss_and_gradients_of_the_whole(length):
    hidden, weight, labels = example(torch.float64, length)
    chunked, whole = (loss(hidden, weight, labels) for loss in (summed_cross_entropy, whole_loss))
    assert abs(chunked - whole) < 1e-10
    for one, other in zip(*(gradients(loss, hidden, weight) for loss in (chunked, whole)), strict=True):
        assert (one - other).abs().max() < 1e-10


def test_rows_without_targets_have_a_loss_of_zero_and_no_gradient():
    hidden, weight, labels = example(torch.float64)
    loss = summed_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients(loss, hidden, weight))


def test_sums_stay_float32_where_products_are_bfloat16():
    hidden, weight, labels = example(torch.float32, 400)
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(whole_loss(hidden, weight, labels).item(), rel=2e-3)
    exact = gradients(whole_loss(hidden, weight, labels), hidden, weight)
    for one, other in zip(gradients(loss, hidden, weight), exact, strict=True):
        assert one.dtype == torch.float32 and (one - other).norm() < 0.02 * other.norm()


def test_gradients_of_the_output_layer_may_be_beyond_float16_before_they_are_divided():
    hidden, weight = torch.full((1, 20_001, 8), 5.0), torch.zeros(50, 8, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = summed_cross_entropy(hidden, weight, torch.ones(1, 20_001, dtype=torch.long))
    [gradient] = torch.autograd.grad(loss / 20_000, [weight])
    expected = torch.full((50, 8), 5 / 50)
    expected[1] -= 5
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=0)


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("with_gradients", [True, False])
def test_no_more_logits_are_held_than_were_allowed(with_gradients):
    hidden, weight, labels = example(torch.float32, 900)
    labels = labels.abs().clamp(max=49)
    with Largest() as largest, torch.set_grad_enabled(with_gradients):
        loss = summed_cross_entropy(hidden.detach(), weight, labels)
        if with_gradients:
            loss.backward()
    assert (
        7 * 50 < largest.elements <= hidden.numel()
    )  # hidden states of the targets; the logits are 6 times more


def test_validation_computes_no_gradients():
    hidden, weight, labels = example(torch.float64)
    with torch.no_grad():
        loss = summed_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad and abs(loss - whole_loss(hidden, weight, labels)) < 1e-10


def test_the_gradient_of_a_frozen_output_layer_is_not_computed_and_the_other_stays_equal_to_the_bit():
    hidden, weight, labels = example(torch.float32)
    trained, frozen = (summed_cross_entropy(hidden, each, labels) for each in (weight, weight.detach()))
    assert frozen.grad_fn.saved_tensors[1] is None and trained.grad_fn.saved_tensors[1] is not None
    assert torch.equal(frozen, trained)
    assert torch.equal(gradients(frozen, hidden)[0], gradients(trained, hidden)[0])
