"""The CUDA path on a machine without a GPU: torch's fake tensors have shapes, dtypes and devices, but no numbers.

They change torch for the rest of the process, so tests use them in one of its own. A compiler for C++ is needed.
"""

import collections
import ctypes
import shutil
import subprocess
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SOURCE = Path(__file__).with_suffix(".cpp")
BUILT = SOURCE.parent.parent / "build" / f"fake_cuda-{torch.__version__}.so"
COMPILER = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
NEEDS = "g++ or clang++, to compile a CUDA device that does nothing, and torch without CUDA, which has none"
USABLE = COMPILER is not None and torch.version.cuda is None and torch.version.hip is None

LAUNCH_NOTHING = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "is_pinned", "is_same_size", "lift_fresh", "narrow", "new_empty",
    "permute", "reshape", "select", "set_", "size", "slice", "split", "split_with_sizes", "squeeze", "stride", "t",
    "transpose", "unbind", "unfold", "unsqueeze", "view",
}  # fmt: skip
"""Operations of torch that compute nothing: views, new memory, and questions."""


def compiled() -> Path:
    """Return the library with the device, compiled if it is not there."""
    if not BUILT.exists():
        assert COMPILER is not None, f"needs {NEEDS}"
        torch_folder = Path(torch.__file__).parent
        libraries = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder / 'lib'}"]
        BUILT.parent.mkdir(exist_ok=True)
        made = BUILT.with_suffix(".new")
        options = ["-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}"]
        subprocess.run([COMPILER, *options, str(SOURCE), *libraries, "-o", str(made)], check=True)
        made.replace(BUILT)
    return BUILT


def _no_kernel(*args: Any) -> Any:
    raise NotImplementedError("there is no GPU")


@contextmanager
def fake_cuda(capability: tuple[int, int] = (8, 0)) -> Iterator[None]:
    """Within the context there is one GPU, and all new tensors are fake."""
    ctypes.CDLL(str(compiled())).install()
    of_cuda = torch.library.Library("aten", "IMPL")
    for name in ("_fused_rms_norm", "_fused_rms_norm_backward"):  # else torch takes six operations in its place
        of_cuda.impl(name, _no_kernel, "CUDA")
    properties = SimpleNamespace(
        name="NVIDIA A100-SXM4-80GB", major=capability[0], minor=capability[1], total_memory=80 * 2**30
    )
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": False,
        "is_bf16_supported": capability >= (8, 0), "get_device_capability": capability,
        "get_device_name": properties.name, "get_device_properties": properties, "get_rng_state_all": [],
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        **dict.fromkeys(("set_device", "_lazy_init", "manual_seed", "manual_seed_all", "set_rng_state_all")),
        **dict.fromkeys(("synchronize", "empty_cache")),
    }  # fmt: skip
    given: Any = {name: lambda *_, answer=a, **__: answer for name, a in answers.items()}
    with (
        patch.multiple(torch.cuda, **given),
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.backends.cuda.is_flash_attention_available", lambda: True),
        patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True),  # it knows no fake tensors
        patch.object(torch.Tensor, "pin_memory", lambda tensor, *_: tensor),
        patch.object(torch.Tensor, "is_pinned", lambda *_: False),
        patch.object(FakeTensorMode, "avoid_device_init", property(lambda _: True)),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


@dataclass
class Seen:
    """What a step made the GPU do."""

    operations: int = 0
    by_name: collections.Counter[str] = field(default_factory=collections.Counter)
    waits: list[str] = field(default_factory=list)
    """Where the program waited for the GPU."""
    blocking_copies: list[str] = field(default_factory=list)
    """Where it waited until something was copied to the GPU."""
    copies: int = 0
    from_the_host: list[str] = field(default_factory=list)
    """Operations on the GPU that were given a tensor in the memory of the host."""
    float64: list[str] = field(default_factory=list)


class Watch(TorchDispatchMode):
    """Notes what is done in each step, `step` being its name; reading a number from the GPU gives 1."""

    def __init__(self) -> None:
        super().__init__()
        self.step: int | str = 0
        self.steps: dict[int | str, Seen] = collections.defaultdict(Seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, seen, name = kwargs or {}, self.steps[self.step], func.__name__.split(".")[0]
        if func is torch.ops.aten._local_scalar_dense.default:
            (number,) = args
            if number.device.type == "cuda":
                seen.waits.append(_place())
            return number.dtype == torch.bool or (1.0 if number.is_floating_point() else 1)
        made = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in results)
        from_host = [tensor for tensor in given if tensor.device.type == "cpu"]
        if name in ("_to_copy", "copy_"):
            if on_device and args[name == "copy_"].device.type == "cpu":
                seen.copies += 1
                if not (kwargs.get("non_blocking") or args[2:] == (True,)):
                    seen.blocking_copies.append(_place())
            if not on_device and any(tensor.device.type == "cuda" for tensor in given):
                seen.waits.append(_place())
        elif on_device and any(tensor.ndim for tensor in from_host):
            seen.from_the_host.append(f"{name} {_place()}")
        if on_device and name not in LAUNCH_NOTHING and not name.startswith("sym_"):
            seen.operations += 1
            seen.by_name[name] += 1
        if any(tensor.device.type == "cuda" and tensor.dtype == torch.float64 for tensor in results):
            seen.float64.append(f"{name} {_place()}")
        return made


def _place() -> str:
    """Return the innermost line outside of torch and this file."""
    lines = [
        f"{frame.filename.rpartition('site-packages/')[2]}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if frame.filename != __file__ and "/torch/" not in frame.filename
    ]
    return lines[-1] if lines else "?"


class Dialogs(torch.utils.data.Dataset[dict[str, Any]]):
    """Dialogs of given lengths, three quarters of whose tokens are supervised."""

    def __init__(self, lengths: Sequence[int], vocabulary: int) -> None:
        self.lengths, self._vocabulary = np.array(lengths), vocabulary

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = np.arange(self.lengths[index])
        return {"input_ids": tokens % self._vocabulary, "supervised": tokens >= len(tokens) // 4}


def new_model(name: str, **shape: Any) -> tuple[Any, Any]:
    """Return a model of the catalogue on the GPU, and the settings to train it."""
    from transformers.initialization import no_init_weights

    from dialogkit.config.load import load_run_config
    from dialogkit.models.build import build_model
    from dialogkit.models.tokenizer import load_tokenizer

    config = load_run_config(name, preset="production", overrides={f"model.{n}": v for n, v in shape.items()})
    with torch.device("cuda"), no_init_weights():
        model = build_model(config.model, load_tokenizer(config.model))
    return model, config.train


def operations_of_a_step(name: str, dialogs: int, **shape: Any) -> dict[str, int]:
    """Return how many operations a step of training launches on the GPU, by its parts."""
    from dialogkit.data.collate import collate_dialogs
    from dialogkit.engine.attention import use_packed_attention
    from dialogkit.engine.clipping import clip_gradients
    from dialogkit.engine.loss import TokenCounter, install_dialog_loss
    from dialogkit.engine.norms import fused_norms
    from dialogkit.engine.optimizer import muon_with_adamw

    data = Dialogs(np.random.default_rng(0).integers(60, 260, dialogs).tolist(), 32768)
    with fake_cuda(), Watch() as watch:
        model, train = new_model(name, **shape)
        use_packed_attention(model)
        install_dialog_loss(model, dtype=torch.bfloat16, counter=TokenCounter())
        decayed = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
        optimizer = muon_with_adamw(model, decayed, train, "bf16")
        batch = {
            name: part.to("cuda") if isinstance(part, torch.Tensor) else part
            for name, part in collate_dialogs([data[i] for i in range(dialogs)]).items()
        }
        with fused_norms(model, "cuda"):
            for warm in (False, True):  # the first step also makes the moments
                model.zero_grad()
                watch.step = "forward" if warm else "before"
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    loss = model(**batch)["loss"]
                watch.step = "backward" if warm else "before"
                loss.backward()
                watch.step = "clipping" if warm else "before"
                clip_gradients(model.parameters(), 1.0)
                watch.step = "optimizer" if warm else "before"
                optimizer.step()
    return {part: watch.steps[part].operations for part in ("forward", "backward", "clipping", "optimizer")}
