"""ONNX graphs: the nodes of a computation, and how weights are stored in them."""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dialogkit.errors import ModelError
from dialogkit.text import byte_size

WeightType = Literal["f32", "f16", "q8_0"]
WEIGHT_TYPES: tuple[WeightType, ...] = get_args(WeightType)
"""How numbers can be stored: 32, 16 and 8.5 bits each."""
OPSET = 20
"""The first version of the operators with GELU."""
BLOCK = 32
"""Weights that share a scale in `q8_0`, as in GGUF."""
MOST_BYTES = 2**31 - 2**20
"""A file of protocol buffers holds less than 2 GiB."""


class Graph:
    """A computation in the making.

    Matrices are stored in fewer bits and made float32 by the first nodes; a runtime does this once, when it loads
    the file, and computes in float32.

    Attributes:
        kept_f16: matrices that were to have fewer bits and have 16: their rows do not divide into blocks.
    """

    def __init__(self, weight_type: WeightType) -> None:
        """Begin a graph whose matrices are stored in this type."""
        self.kept_f16: list[str] = []
        self._weight_type = weight_type
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._matrices: dict[int, str] = {}

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node of a kind with one output, and return the output's name."""
        from onnx import helper

        output = name or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def halves(self, value: str) -> tuple[str, str]:
        """Return the first and the second half of the last axis."""
        from onnx import helper

        outputs = f"Split_{len(self._nodes)}_first", f"Split_{len(self._nodes)}_second"
        self._nodes.append(helper.make_node("Split", [value], list(outputs), axis=-1, num_outputs=2))
        return outputs

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Add values as they are, and return their name."""
        from onnx import numpy_helper

        name = f"weight_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.array(values, dtype=dtype, order="C"), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a list of integers, such as a shape or axes."""
        return self.constant(values, np.int64)

    def vector(self, parameter: Any) -> str:
        """Add a norm, a bias or position embeddings, which keep 32 bits."""
        return self.constant(_values(parameter))

    def matrix(self, name: str, parameter: Any, *, transposed: bool = False) -> str:
        """Add a matrix [out, in] once, however often it is used.

        Args:
            name: what it is called in `kept_f16`.
            parameter: its values.
            transposed: whether they are [in, out].
        """
        if id(parameter) not in self._matrices:
            values = _values(parameter)
            self._matrices[id(parameter)] = self._stored(name, values.T if transposed else values)
        return self._matrices[id(parameter)]

    def _stored(self, name: str, values: NDArray[np.float32]) -> str:
        from onnx import TensorProto

        if self._weight_type == "f32":
            return self.constant(values)
        if self._weight_type == "f16" or values.shape[1] % BLOCK:
            if self._weight_type != "f16":
                self.kept_f16.append(name)
            return self.op("Cast", self.constant(values, np.float16), to=TensorProto.FLOAT)
        blocks = values.reshape(len(values), -1, BLOCK)
        scales = (np.abs(blocks).max(axis=2, keepdims=True) / 127).astype(np.float16)
        steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0, dtype=np.float32)
        stored = self.constant(np.clip(np.rint(steps), -127, 127), np.int8)
        numbers, factors = (
            self.op("Cast", each, to=TensorProto.FLOAT) for each in (stored, self.constant(scales, np.float16))
        )
        return self.op("Reshape", self.op("Mul", numbers, factors), self.integers(*values.shape))

    def save(self, path: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Write the file; inputs and outputs are types and shapes by name.

        Raises: ModelError if a file cannot hold it.
        """
        from onnx import checker, helper

        graph = helper.make_graph(
            self._nodes,
            "model",
            [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
            [helper.make_tensor_value_info(name, *about) for name, about in outputs.items()],
            self._weights,
        )
        model = helper.make_model(
            graph, producer_name="dialogkit", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        if (size := model.ByteSize()) > MOST_BYTES:
            raise ModelError(
                f"the model takes {byte_size(size)} as {self._weight_type}, and an ONNX file holds less than 2 GiB"
            )
        checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _values(parameter: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parameter.detach().float().cpu().numpy()
    return values
