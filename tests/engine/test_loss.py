"""The chunked loss is cross-entropy, and a model with it is a model that HF would train."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from dialogkit.data.collate import collate_dialogs
from dialogkit.engine.attention import packed_attention, use_packed_attention, use_plain_attention
from dialogkit.engine.loss import (
    CHUNK_TOKENS,
    TokenCounter,
    chunk_tokens,
    chunked_cross_entropy,
    install_dialog_loss,
    remove_dialog_loss,
)
from dialogkit.shapes import common_length

WIDTH, VOCABULARY = 24, 101
SIZES = [1, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 3 * CHUNK_TOKENS + 5]


def problem(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    hidden = torch.randn(size, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    return hidden, weight, torch.randint(0, VOCABULARY, (size,), generator=generator)


def exact(size: int) -> tuple[torch.Tensor, ...]:
    """Return torch's loss and both gradients in float64; the loss is scaled as a part of a batch would be."""
    hidden, weight, targets = problem(size)
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = cross_entropy(hidden @ weight.t(), targets, reduction="sum") / 7
    return (loss.detach(), *torch.autograd.grad(loss, (hidden, weight)))


def chunked(size: int, dtype: torch.dtype, hidden_dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    hidden, weight, targets = problem(size)
    hidden = hidden.to(hidden_dtype).requires_grad_()
    weight = weight.float().requires_grad_()
    loss = chunked_cross_entropy(hidden, weight, targets, dtype=dtype) / 7
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert [g.dtype for g in gradients] == [hidden.dtype, weight.dtype]
    return (loss.detach(), *gradients)


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradients_are_those_of_torch(size: int) -> None:
    for ours, theirs in zip(chunked(size, torch.float32), exact(size), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_bf16_stays_within_its_precision(size: int, hidden_dtype: torch.dtype) -> None:
    pairs = zip(chunked(size, torch.bfloat16, hidden_dtype), exact(size), strict=True)
    loss, *gradients = [float((ours.double() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
    assert loss < 1e-3  # the products alone are rounded, never the sums
    assert max(gradients) < 1e-2


@pytest.mark.parametrize("chosen", ["scaled", "unlikely", "certain"])
def test_gradients_in_fp16_are_those_of_float32_however_small_they_are(chosen: str) -> None:
    hidden, weight, targets = problem(CHUNK_TOKENS + 1)
    if chosen == "certain":  # probabilities of 1 but for 1e-6: 1e-6 is below the smallest normal number of fp16
        hidden = weight[targets] * 20 / weight[targets].square().sum(1, keepdim=True)
        weight = weight * 0.7
    scale = 2.0**16 if chosen == "scaled" else 1e-9  # as GradScaler's first; and as of a batch of many tokens
    found = []
    for dtype in (torch.float16, torch.float64):
        leaves = [part.to(torch.float64 if dtype == torch.float64 else torch.float32) for part in (hidden, weight)]
        leaves = [part.requires_grad_() for part in leaves]
        loss = chunked_cross_entropy(*leaves, targets, dtype=dtype) * scale
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours.double() - theirs.double()).norm() < 2e-3 * theirs.norm()


def test_the_gradient_of_many_chunks_is_summed_in_the_precision_of_the_weights() -> None:
    hidden, weight, targets = (
        part.float() if part.is_floating_point() else part for part in problem(CHUNK_TOKENS)
    )
    gradients = []
    for copies in (1, 300):
        weight = weight.detach().requires_grad_()
        loss = chunked_cross_entropy(
            hidden.repeat(copies, 1), weight, targets.repeat(copies), dtype=torch.bfloat16
        )
        gradients.append(torch.autograd.grad(loss, weight)[0] / copies)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_an_autocast_around_it_changes_nothing() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = chunked(CHUNK_TOKENS + 1, torch.float32)
    assert all(map(torch.equal, inside, chunked(CHUNK_TOKENS + 1, torch.float32)))


def test_logits_far_from_zero_stay_finite() -> None:
    hidden = torch.full((3, 1), 1e4)
    weight = torch.tensor([[1.0], [-1.0]])
    losses = [chunked_cross_entropy(hidden, weight, torch.full((3,), t), dtype=torch.float32) for t in (0, 1)]
    # A target of no probability at all costs as much as one of the least that there is.
    assert [float(loss) for loss in losses] == [0.0, pytest.approx(3 * 87.3365)]


class LargestLogits(TorchDispatchMode):
    """Remembers the most rows of any tensor with a column for each entry of the vocabulary."""

    def __init__(self, vocabulary: int, weights: set[torch.Size]) -> None:
        super().__init__()
        self.rows = 0
        self._vocabulary, self._weights = vocabulary, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and self._vocabulary in tensor.shape:
                shape = sorted(tensor.shape, key=lambda n: n != self._vocabulary)
                if torch.Size(shape) not in self._weights:
                    self.rows = max(self.rows, int(np.prod(shape[1:])))
        return made


def plain_parts(dialogs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return the batch that HF would take: padded rows with a mask, and -100 wherever nothing is learned."""
    longest = max(len(d["input_ids"]) for d in dialogs)
    rows = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {name: torch.full((len(dialogs), longest), fill) for name, fill in rows.items()}
    for row, dialog in enumerate(dialogs):
        ids = torch.from_numpy(dialog["input_ids"].astype(np.int64))
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(ids)] = ids.where(torch.from_numpy(dialog["supervised"]), -100)
    return batch


def loss_and_gradients(model: Any, batches: Sequence[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch)["loss"]
        loss.backward()
        total += float(loss.detach())
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def with_bias(model: Any) -> Any:
    """Give the output layer a bias, as Phi and GPT-J have one."""
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size))
    return model


def with_capped_logits(model: Any) -> Any:
    """Cap the logits, as Gemma 2 does."""
    cap = 2.0  # reached by these weights
    forward = type(model).forward

    class Capped(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, labels: Any = None, **more: Any) -> Any:
            made = forward(self, *args, **more)
            made.logits = cap * torch.tanh(made.logits / cap)
            if labels is not None:
                made.loss = self.loss_function(made.logits, labels, vocab_size=self.config.vocab_size)
            return made

    model.__class__, model.config.final_logit_softcapping = Capped, cap
    return model


@pytest.fixture(params=["gpt2", "llama", "llama with bias", "llama with capped logits"])
def model(request: pytest.FixtureRequest, small: Any) -> Any:
    architecture, _, more = request.param.partition(" with ")
    made = small.model(architecture, initializer_range=0.2).eval()
    return {"": lambda same: same, "bias": with_bias, "capped logits": with_capped_logits}[more](made)


def test_loss_and_gradients_are_those_of_a_padded_batch_of_HF(model: Any, small: Any) -> None:
    dialogs = [small.train[i] for i in range(9)]
    expected_loss, expected = loss_and_gradients(model, [plain_parts(dialogs)])
    use_packed_attention(model)
    install_dialog_loss(model, dtype=torch.float32, counter=TokenCounter())
    loss, gradients = loss_and_gradients(model, [collate_dialogs(dialogs)])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_parts_of_a_step_weigh_as_many_tokens_as_they_have(model: Any, small: Any) -> None:
    dialogs = [small.train[i] for i in range(9)]
    tokens = torch.tensor(sum(int(d["supervised"].sum()) for d in dialogs))
    use_packed_attention(model)
    install_dialog_loss(model, dtype=torch.float32, counter=TokenCounter())
    whole_loss, whole = loss_and_gradients(model, [collate_dialogs(dialogs)])
    parts = [collate_dialogs(dialogs[:2]), collate_dialogs(dialogs[2:])]
    loss, gradients = loss_and_gradients(model, [{**part, "num_items_in_batch": tokens} for part in parts])
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_removing_the_loss_gives_the_model_its_own_forward_back(model: Any, small: Any) -> None:
    batch = plain_parts([small.train[i] for i in range(3)])
    before = model(**batch)
    use_packed_attention(model)
    install_dialog_loss(model, dtype=torch.float32, counter=TokenCounter())
    assert model(**collate_dialogs([small.train[0]])).keys() == {"loss"}
    remove_dialog_loss(model)
    use_plain_attention(model)
    after = model(**batch)
    assert "forward" not in vars(model)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(before.logits, after.logits)


def test_the_counter_counts_all_tokens_and_the_supervised_ones(model: Any, small: Any) -> None:
    dialogs = [small.train[i] for i in range(5)]
    counter = TokenCounter()
    use_packed_attention(model)
    install_dialog_loss(model, dtype=torch.float32, counter=counter)
    loss_and_gradients(model, [collate_dialogs(dialogs[:3]), collate_dialogs(dialogs[3:])])
    assert counter.all == sum(len(d["input_ids"]) for d in dialogs)
    assert counter.supervised == sum(int(d["supervised"].sum()) for d in dialogs)


def test_common_lengths_are_few_and_not_much_longer() -> None:
    lengths = range(1, 5000)
    common = [common_length(length) for length in lengths]
    assert all(length <= made < length + max(64, length / 8) for length, made in zip(lengths, common, strict=True))
    assert len(set(common)) < 40
    assert [common_length(made) for made in common] == common
    assert common_length(0) == 0


def test_a_row_that_is_filled_up_is_the_row(model: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate_dialogs([small.train[i] for i in range(9)])
    assert common_length(batch["input_ids"].numel()) > batch["input_ids"].numel()
    assert common_length(len(batch["labels"])) > len(batch["labels"])
    use_packed_attention(model)
    counter = TokenCounter()
    install_dialog_loss(model, dtype=torch.float32, counter=counter)
    expected_loss, expected = loss_and_gradients(model, [batch])
    counted = counter.metrics()
    # In float32, where it changes nothing but the order of sums, so that an error is not lost in the rounding.
    monkeypatch.setattr("dialogkit.engine.loss.compiles_shapes", lambda *_: True)
    loss, gradients = loss_and_gradients(model, [batch])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    assert counter.metrics() == {name: 2 * number for name, number in counted.items()}


def test_steps_of_different_lengths_in_bf16_have_products_of_few_shapes(small: Any) -> None:
    class Products(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: set[Any] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten.mm:
                self.shapes.add(tuple(part.shape for part in args[:2]))
            return func(*args, **(kwargs or {}))

    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        model = small.model()
        use_packed_attention(model)
        install_dialog_loss(model, dtype=dtype, counter=TokenCounter())
        with Products() as products:
            for start in range(0, 80, 4):
                loss_and_gradients(model, [collate_dialogs([small.train[i] for i in range(start, start + 4)])])
        seen.append(len(products.shapes))
    assert seen[1] < seen[0] / 2


def test_a_shared_weight_gets_the_gradients_of_both_its_uses(model: Any, small: Any) -> None:
    batch = collate_dialogs([small.train[i] for i in range(4)])
    use_packed_attention(model)
    gradients = []
    for hooked in (False, True):
        words = model.get_input_embeddings()
        # A hook takes the plain way, in which autograd adds the two.
        hook = words.register_forward_hook(lambda *_: None) if hooked else None
        install_dialog_loss(model, dtype=torch.float32, counter=TokenCounter())
        gradients.append(loss_and_gradients(model, [batch])[1])
        remove_dialog_loss(model)
        if hook:
            hook.remove()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_never_holds_logits_of_more_tokens_than_a_chunk(dtype: torch.dtype, small: Any) -> None:
    model = small.model()
    batch = collate_dialogs([small.train[i] for i in range(16)])
    assert len(batch["labels"]) > 2 * CHUNK_TOKENS
    use_packed_attention(model)
    install_dialog_loss(model, dtype=dtype, counter=TokenCounter())
    with LargestLogits(small.vocabulary, {model.lm_head.weight.shape}) as largest:
        loss_and_gradients(model, [batch])
    assert largest.rows == CHUNK_TOKENS


def test_a_gpu_takes_more_rows_of_logits_at_once_if_the_vocabulary_allows_it() -> None:
    sizes = {(d, v): chunk_tokens(v, torch.device(d)) for d in ("cpu", "cuda") for v in (32_768, 1_000_000)}
    assert sizes.pop(("cuda", 32_768)) == 4096
    assert set(sizes.values()) == {CHUNK_TOKENS}


@pytest.mark.faults
def test_a_compiled_model_is_not_compiled_again_for_the_lengths_of_each_batch() -> None:
    graphs: list[Any] = []

    def as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def step(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, lengths: Any) -> torch.Tensor:
        heads = (2 * hidden)[None, None]
        attended, _ = packed_attention(torch.nn.Identity(), heads, heads, heads, None, dialog_lengths=lengths)
        loss: torch.Tensor = chunked_cross_entropy(attended[0, :, 0] + 1, weight, targets, dtype=torch.float32) / 3
        return loss

    compiled = torch.compile(step, backend=as_it_is)
    compilations = []
    for lengths in [(3, 4), (5, 1), (7, 9), (CHUNK_TOKENS, 2), (8, 2 * CHUNK_TOKENS)]:
        hidden, weight, targets = problem(sum(lengths))
        batch = (hidden.float(), weight.float(), targets, lengths)
        assert float(compiled(*batch)) == pytest.approx(float(step(*batch)), rel=1e-5)
        compilations.append(len(graphs))
    # Once for the first lengths, once more for any.
    assert 0 < compilations[0] < compilations[1] == compilations[-1]


@pytest.mark.parametrize("size", SIZES)
def test_a_head_that_does_not_learn_gets_no_gradient(size: int) -> None:
    hidden, weight, targets = problem(size)
    hidden = hidden.float().requires_grad_()
    frozen = weight.float()
    loss = chunked_cross_entropy(hidden, frozen, targets, dtype=torch.float32) / 7
    (gradient,) = torch.autograd.grad(loss, (hidden,))
    ours, theirs, _ = chunked(size, torch.float32)
    assert torch.equal(loss.detach(), ours)
    assert torch.equal(gradient, theirs)
    assert frozen.grad is None
