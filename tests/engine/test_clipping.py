"""The norm of the gradients is that of float64, and clipping is torch's."""

from copy import deepcopy

import pytest
import torch

from dialogkit.engine.clipping import clip_gradients, gradient_norm


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    random = torch.Generator().manual_seed(seed)
    made = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=random)
        made.append(parameter)
    return made


SHAPES = ((4096, 1024), (1000, 33), (7,), (1,), (), (1024,), (3, 5, 7))


def exact(of: list[torch.nn.Parameter]) -> float:
    squares = [parameter.grad.double().square().sum() for parameter in of if parameter.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_the_norm_is_that_of_float64() -> None:
    made = parameters(*SHAPES)
    made.append(torch.nn.Parameter(torch.zeros(5)))  # without a gradient
    assert float(gradient_norm(made)) == pytest.approx(exact(made), rel=1e-6)
    made[1].grad = made[1].grad.t().contiguous().t()  # type: ignore[union-attr]
    assert float(gradient_norm(made)) == pytest.approx(exact(made), rel=1e-6)


def test_the_norm_does_not_depend_on_the_number_of_threads() -> None:
    made = parameters(*SHAPES)
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(float(gradient_norm(made)))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


def test_gradients_are_clipped_as_torch_clips_them() -> None:
    for limit in (0.5, 1e6):
        ours = parameters(*SHAPES[1:])
        theirs = deepcopy(ours)
        for one, other in zip(ours, theirs, strict=True):
            other.grad = one.grad.clone()  # type: ignore[union-attr]
        norm = clip_gradients(ours, limit)
        expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
        assert float(norm) == pytest.approx(float(expected), rel=1e-4)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_is_not_hidden(value: float) -> None:
    made = parameters(*SHAPES)
    made[1].grad[3, 3] = value  # type: ignore[index]
    assert not torch.isfinite(clip_gradients(made, 1.0))
    assert not all(torch.isfinite(parameter.grad).all() for parameter in made)  # type: ignore[arg-type]


def test_no_gradient_at_all_has_no_length() -> None:
    assert float(clip_gradients([torch.nn.Parameter(torch.zeros(3))], 1.0)) == 0.0
