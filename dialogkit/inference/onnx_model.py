"""A model that onnxruntime computes from an ONNX file, used as one of transformers where both are compared.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_outputs import CausalLMOutput


class OnnxModel(torch.nn.Module):
    """The graph of an exported model; its "hidden states" are its logits, and its output layer changes nothing."""

    def __init__(self, path: Path, config: Any) -> None:
        """Load a file that `write_onnx` made of a model with this config."""
        import onnxruntime

        super().__init__()
        self.config = config
        self._head = torch.nn.Identity()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        shapes = {each.name: each.shape for each in self._session.get_inputs()}
        self._nothing = {
            name: np.zeros((groups, 0, size), np.float32)
            for name, (groups, _, size) in ((name, shape) for name, shape in shapes.items() if len(shape) == 3)
        }

    @property
    def base_model(self) -> torch.nn.Module:
        """What makes the hidden states."""
        return self

    def get_output_embeddings(self) -> torch.nn.Module:
        """Return the output layer."""
        return self._head

    def forward(
        self, input_ids: torch.Tensor, *, dialog_lengths: Sequence[int] | None = None, **unused: Any
    ) -> CausalLMOutput:
        """Return the logits [1, T, V] of one text, or of several that stand one after another.

        Each is read in two parts, so that the second relies on the keys and values of the first. There are none
        for what comes after the texts.
        """
        rows, lengths = [], list(dialog_lengths or (input_ids.shape[1],))
        for ids in torch.split(input_ids[0, : sum(lengths)], lengths):
            past = self._nothing
            for part in filter(len, ids.tensor_split(2)):
                logits, past = self._run(part.tolist(), past, keep=len(part))
                rows.append(torch.from_numpy(logits))
        return CausalLMOutput(logits=torch.cat(rows)[None])

    def reply(self, prompt: Sequence[int], *, longest: int, ends: frozenset[int]) -> list[int]:
        """Return the ids of the greedy reply to a prompt, token by token; the last may be an end."""
        made: list[int] = []
        past, new = self._nothing, list(prompt)
        while len(made) < longest and not (made and made[-1] in ends):
            logits, past = self._run(new, past, keep=1)
            new = [int(logits[-1].argmax())]
            made += new
        return made

    def _run(
        self, ids: Sequence[int], past: dict[str, NDArray[np.float32]], *, keep: int
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """Return the logits of the last new tokens [keep, V], and the keys and values of all."""
        inputs = {"input_ids": np.array([ids], np.int64), "keep": np.array([keep], np.int64), **past}
        outputs = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        logits = outputs.pop("logits")
        return logits, {name.replace("present", "past", 1): values for name, values in outputs.items()}
