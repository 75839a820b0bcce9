"""One ONNX Runtime session: its signature and its answers."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

# onnxruntime's published builds send usage data to their maker, and keep a device id in the home folder, unless this
# stands before the import (microsoft/onnxruntime#27379). A function calls nobody whom its operator did not name.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

from threefold.errors import InvalidManifest, InvalidPackage, OutsideSignature
from threefold.features import FeatureEncoder
from threefold.signature import ONNX_DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from threefold.package import Manifest, Package

RUNTIME: Final = f"onnxruntime {ort.__version__}, numpy {np.__version__}"
# Measured: beyond 4,096 rows a call the memory grows and the speed does not.
ROWS_PER_CALL: Final = 4096
# A session's memory beside its weights: measured with 100 sessions of small models, 0.9 MB each.
_SESSION_BYTES: Final = 1024**2
# The weights stand in memory about twice: as read, and as ONNX Runtime lays them out.
_WEIGHT_COPIES: Final = 2


@dataclass(slots=True)
class Answer:
    """What a model says of n rows.

    Attributes:
        labels: classification: the n chosen classes, as JSON has them.
        scores: classification: a score per class, shape [n, classes].
        values: regression: shape [n].
        tensors: every output as it came, each with n as its first axis.
    """

    tensors: dict[str, npt.NDArray[Any]]
    labels: Sequence[str | int] | None = None
    scores: npt.NDArray[np.float32] | None = None
    values: npt.NDArray[Any] | None = None


class Model:
    """A loaded model package."""

    def __init__(self, package: Package, *, threads: int = 1) -> None:
        """Load the package's ONNX file.

        Args:
            package: an unpacked package.
            threads: for one inference call.

        Raises:
            InvalidPackage: ONNX Runtime refuses it, its tensors are not those of the manifest, or the manifest does
                not fit them.
        """
        started = time.perf_counter()
        self.package = package
        self.manifest: Manifest = package.manifest
        self.digest = package.digest
        # Asked for every request, and answered by a look at every feature.
        self.online = package.manifest.online
        self._session = open_session(package.model_path, threads)
        signature = self.manifest.signature
        found = read_signature(self._session)
        if (found.inputs, found.outputs) != (signature.inputs, signature.outputs):
            message = (
                f"package {package.digest[:12]}: want the tensors of its manifest, "
                f"got {[spec.to_json() for spec in (*found.inputs, *found.outputs)]}"
            )
            raise InvalidPackage(message)
        self._check_manifest()
        self.encoder = FeatureEncoder(signature) if signature.features else None
        self._output_names = [spec.name for spec in signature.outputs]
        self._batch, self._stackable = signature.fixed_batch, signature.stackable
        self.size_bytes = memory_bytes(package)
        self.load_ms = (time.perf_counter() - started) * 1000

    def run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph over n rows, in chunks that suit the runtime; a fixed batch dimension is padded.

        Args:
            tensors: input name to array; where rows can be stacked, the first dimension is n for every input.

        Returns:
            Output name to array, maps flattened to arrays.

        Raises:
            OutsideSignature: values that the graph itself refuses, as an index beyond its table.
        """
        if not self._stackable:
            return self._call(dict(tensors))
        rows = len(next(iter(tensors.values())))
        if self._batch > 0 and rows != self._batch:
            return self._run_padded(tensors, rows)
        if self._batch > 0 or rows <= ROWS_PER_CALL:
            return self._call(dict(tensors))
        parts = [
            self._call({name: array[start : start + ROWS_PER_CALL] for name, array in tensors.items()})
            for start in range(0, rows, ROWS_PER_CALL)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._output_names}

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Answer:
        """Run the graph and say what its outputs mean, by the manifest.

        Raises:
            OutsideSignature: as `run`.
            InvalidPackage: an output that does not hold what the manifest says: a value a row, a score a class.
        """
        outputs = self.run(tensors)
        output = self.manifest.output
        rows = len(next(iter(tensors.values())))
        if output.kind == "regression":
            return Answer(outputs, values=self._flat(outputs, _named(output.value), rows))
        if output.kind == "classification":
            scores = self._scores(outputs[output.scores], rows) if output.scores else None
            if output.label is not None:
                labels: Sequence[str | int] = self._flat(outputs, output.label, rows).tolist()
            else:
                assert scores is not None, "the manifest was checked"
                labels = [output.classes[i] for i in np.argmax(scores, axis=1).tolist()]
            return Answer(outputs, labels=labels, scores=scores)
        return Answer(outputs)

    def _check_manifest(self) -> None:
        """See that the features fit the inputs, and that the output's parts are there."""
        signature, output = self.manifest.signature, self.manifest.output
        try:
            signature.check()
        except InvalidManifest as error:
            message = f"package {self.digest[:12]}: {error}"
            raise InvalidPackage(message) from error
        if not signature.inputs:
            message = f"package {self.digest[:12]}: want a graph with inputs, got one without"
            raise InvalidPackage(message)
        named = {output.label, output.scores, output.value} - {None}
        whole = {
            "classification": bool(output.label or (output.scores and output.classes)),
            "regression": output.value is not None,
        }
        if not whole.get(output.kind, True) or not named <= {spec.name for spec in signature.outputs}:
            message = f"package {self.digest[:12]}: want an output of the graph's tensors, got {output.to_json()}"
            raise InvalidPackage(message)
        free = all(spec.shape and spec.shape[0] == -1 for spec in signature.inputs)
        if signature.features and not free and not signature.fixed_batch:
            message = (
                f"package {self.digest[:12]}: want inputs whose first dimension is the records, "
                f"got {[spec.to_json() for spec in signature.inputs]}"
            )
            raise InvalidPackage(message)

    def _flat(self, outputs: Mapping[str, npt.NDArray[Any]], name: str, rows: int) -> npt.NDArray[Any]:
        array = outputs[name]
        if array.size != rows:
            message = f"package {self.digest[:12]}: want one '{name}' a row, got shape {list(array.shape)}"
            raise InvalidPackage(message)
        return array.reshape(rows)

    def _scores(self, array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
        classes = self.manifest.output.classes
        width = len(classes) if classes else (array.size // rows if rows else 0)
        if array.size != rows * width or not width:
            message = f"package {self.digest[:12]}: want a score for each of {width} classes, got {list(array.shape)}"
            raise InvalidPackage(message)
        return array.reshape(rows, width)

    def _run_padded(self, tensors: Mapping[str, npt.NDArray[Any]], rows: int) -> dict[str, npt.NDArray[Any]]:
        parts = []
        if rows == 0:
            message = f"inputs: want at least one row for a batch of {self._batch}, got none"
            raise OutsideSignature(message)
        for start in range(0, rows, self._batch):
            feed = {}
            for name, array in tensors.items():
                part = array[start : start + self._batch]
                # The last row again: any row of the data is a valid one, where zeros may not be.
                padding = [part[-1:]] * (self._batch - len(part))
                feed[name] = np.concatenate([part, *padding]) if padding else part
            kept = min(self._batch, rows - start)
            parts.append({name: array[:kept] for name, array in self._call(feed).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self._output_names}

    def _flatten_maps(self, name: str, maps: list[dict[Any, float]]) -> npt.NDArray[np.float32]:
        """Scikit-learn's ZipMap output, {class: score} a row, as [n, classes] in the order of the classes."""
        output = self.manifest.output
        if not maps:
            return np.zeros((0, len(output.classes)), np.float32)
        order = output.classes if name == output.scores and output.classes else tuple(maps[0])
        if set(order) != set(maps[0]):
            message = f"package {self.digest[:12]}: want scores for {list(order)}, got them for {list(maps[0])}"
            raise InvalidPackage(message)
        return np.array([[row[label] for label in order] for row in maps], np.float32)

    def _call(self, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        try:
            found = self._session.run(self._output_names, feed)
        except Exception as error:  # onnxruntime's exceptions share no class but Exception
            message = f"inputs: want values that the model can compute with, got: {_last_line(error)}"
            raise OutsideSignature(message) from error
        for i, value in enumerate(found):
            if type(value) is list:
                found[i] = self._flatten_maps(self._output_names[i], value)
        return dict(zip(self._output_names, found, strict=True))


def memory_bytes(package: Package) -> int:
    """What a package's model takes in memory, about; it can be asked before the model is loaded.

    Raises:
        InvalidPackage: a file of it is not there.
    """
    return _SESSION_BYTES + _WEIGHT_COPIES * package.weights_bytes


def _last_line(error: Exception) -> str:
    """What a runtime's error says in its last sentence; before it stand codes and names of nodes."""
    return (str(error).rpartition("Status Message: ")[2].strip() or repr(error)).splitlines()[0][:200]


def open_session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """Open an ONNX file.

    Raises:
        InvalidPackage: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A thread that spins while it waits takes the processor that Lambda meters.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no class but Exception
        message = f"{path.name}: want an ONNX model that ONNX Runtime {ort.__version__} loads, got: {error}"
        raise InvalidPackage(message) from error


def read_signature(session: ort.InferenceSession) -> Signature:
    """The tensors of a graph: scikit-learn's sequences of maps count as a [n, classes] tensor.

    Raises:
        InvalidPackage: a datatype that the Open Inference Protocol has no name for.
    """
    return Signature(
        inputs=tuple(_spec(node) for node in session.get_inputs()),
        outputs=tuple(_spec(node) for node in session.get_outputs()),
    )


def _spec(node: Any) -> TensorSpec:  # noqa: ANN401 - onnxruntime's NodeArg has no public type
    if node.type in {"seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))"}:
        return TensorSpec(node.name, "FP32", (-1, -1))
    if node.type not in ONNX_DATATYPES:
        message = f"tensor '{node.name}': want one of {sorted(ONNX_DATATYPES)}, got {node.type}"
        raise InvalidPackage(message)
    # A free dimension is a name or None; a scalar's shape is empty.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, ONNX_DATATYPES[node.type], shape)


def _named(name: str | None) -> str:
    if name is None:
        message = "manifest: want the output's tensor named, got none"
        raise InvalidPackage(message)
    return name
