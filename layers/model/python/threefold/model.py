"""One ONNX Runtime session: its signature, its answers, and the check of itself before it serves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort

from threefold.errors import InvalidPackage
from threefold.features import FeatureEncoder
from threefold.signature import ONNX_DATATYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from threefold.package import Manifest, Package

# Measured: beyond 4,096 rows a call the memory grows and the speed does not.
ROWS_PER_CALL: Final = 4096
# Relative and absolute tolerance by the width of the output: what different builds of a runtime differ by.
TOLERANCE: Final = {"FP16": 1e-2, "FP32": 1e-4, "FP64": 1e-6}
# A session's memory beside its weights: measured with 100 sessions of small models, 0.9 MB each.
_SESSION_BYTES: Final = 1024**2
# The weights stand in memory about twice: as read, and as ONNX Runtime lays them out.
_WEIGHT_COPIES: Final = 2


@dataclass(frozen=True, slots=True)
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
            InvalidPackage: ONNX Runtime refuses it, or its tensors are not those of the manifest.
        """
        started = time.perf_counter()
        self.package = package
        self.manifest: Manifest = package.manifest
        self.digest = package.digest
        self._session = open_session(package.model_path, threads)
        signature = self.manifest.signature
        found = read_signature(self._session)
        if (found.inputs, found.outputs) != (signature.inputs, signature.outputs):
            message = (
                f"package {package.digest[:12]}: want the tensors of its manifest, "
                f"got {[spec.to_json() for spec in (*found.inputs, *found.outputs)]}"
            )
            raise InvalidPackage(message)
        self.encoder = FeatureEncoder(signature) if signature.features else None
        self._output_names = [spec.name for spec in signature.outputs]
        self._batch = next((spec.shape[0] for spec in signature.inputs if spec.shape), -1)
        self.size_bytes = _SESSION_BYTES + _WEIGHT_COPIES * package.model_path.stat().st_size
        self.load_ms = (time.perf_counter() - started) * 1000

    def run(self, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph over n rows, in chunks that suit the runtime; a fixed batch dimension is padded.

        Args:
            tensors: input name to array; where the first dimension is free, it is n for every input.

        Returns:
            Output name to array, maps flattened to arrays.
        """
        rows = len(next(iter(tensors.values()))) if tensors and self._batch != 0 else 0
        if self._batch > 0 and rows != self._batch and self._rows_are_batches(tensors):
            return self._run_padded(tensors, rows)
        if rows <= ROWS_PER_CALL or not self.manifest.signature.batched:
            return self._call(dict(tensors))
        parts = [
            self._call({name: array[start : start + ROWS_PER_CALL] for name, array in tensors.items()})
            for start in range(0, rows, ROWS_PER_CALL)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._output_names}

    def answer(self, tensors: Mapping[str, npt.NDArray[Any]]) -> Answer:
        """Run the graph and say what its outputs mean, by the manifest."""
        outputs = self.run(tensors)
        output = self.manifest.output
        if output.kind == "regression":
            return Answer(outputs, values=outputs[_named(output.value)].reshape(-1))
        if output.kind == "classification":
            scores = outputs[_named(output.scores)] if output.scores else None
            if output.label is not None:
                labels: Sequence[str | int] = outputs[output.label].reshape(-1).tolist()
            else:
                classes = output.classes
                labels = [classes[i] for i in np.argmax(outputs[_named(output.scores)], axis=1).tolist()]
            return Answer(outputs, labels=labels, scores=None if scores is None else scores.reshape(len(labels), -1))
        return Answer(outputs)

    def check(self) -> None:
        """Run every end-to-end example and compare with what the training library said.

        Raises:
            InvalidPackage: an example is refused, or its answer is beyond the tolerance of its datatype.
        """
        examples = self.package.examples()
        if not examples:
            return
        answer, positions = self._answer_examples(examples)
        specs = {spec.name: spec.datatype for spec in self.manifest.signature.outputs}
        for row, position in enumerate(positions):
            expected = examples[position]["expect"]
            for what, want in expected.items():
                got = self._said(answer, what, row)
                datatype = specs.get(what) or specs.get(str(self.manifest.output.scores or self.manifest.output.value))
                if not _agree(want, got, TOLERANCE.get(datatype or "", 0.0)):
                    message = f"package {self.digest[:12]}: example {position + 1}: want {what} {want}, got {got}"
                    raise InvalidPackage(message)

    def _answer_examples(self, examples: list[dict[str, Any]]) -> tuple[Answer, range]:
        positions = range(len(examples))
        if self.encoder is not None:
            encoded = self.encoder.encode([example["record"] for example in examples])
            if encoded.problems:
                position, problems = next(iter(encoded.problems.items()))
                message = f"package {self.digest[:12]}: example {position + 1}: {'; '.join(problems)}"
                raise InvalidPackage(message)
            return self.answer(encoded.tensors), positions
        tensors = {
            spec.name: np.array([example["inputs"][spec.name] for example in examples], spec.dtype)
            for spec in self.manifest.signature.inputs
        }
        return self.answer(tensors), positions

    def _said(self, answer: Answer, what: str, row: int) -> object:
        output = self.manifest.output
        if what == "label" and answer.labels is not None:
            return answer.labels[row]
        if what == "value" and answer.values is not None:
            return answer.values[row].item()
        if what == "scores" and answer.scores is not None:
            return dict(zip(map(str, output.classes), answer.scores[row].tolist(), strict=True))
        return answer.tensors[what][row].tolist()

    def _rows_are_batches(self, tensors: Mapping[str, npt.NDArray[Any]]) -> bool:
        specs = {spec.name: spec for spec in self.manifest.signature.inputs}
        return all(specs[name].shape[:1] == (self._batch,) for name in tensors)

    def _run_padded(self, tensors: Mapping[str, npt.NDArray[Any]], rows: int) -> dict[str, npt.NDArray[Any]]:
        parts = []
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

    def _call(self, feed: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        found = self._session.run(self._output_names, feed)
        for i, value in enumerate(found):
            if type(value) is list:
                found[i] = _flatten_maps(value)
        return dict(zip(self._output_names, found, strict=True))


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


def _flatten_maps(maps: list[dict[Any, float]]) -> npt.NDArray[np.float32]:
    """Scikit-learn's ZipMap output, {class: score} a row, as [n, classes] in the order of the classes."""
    if not maps:
        return np.zeros((0, 0), np.float32)
    return np.array([list(row.values()) for row in maps], np.float32)


def _named(name: str | None) -> str:
    if name is None:
        message = "manifest: want the output's tensor named, got none"
        raise InvalidPackage(message)
    return name


def _agree(want: object, got: object, tolerance: float) -> bool:
    if isinstance(want, dict) and isinstance(got, dict):
        return want.keys() == got.keys() and all(_agree(want[key], got[key], tolerance) for key in want)
    if isinstance(want, str) or isinstance(got, str):
        return want == got
    wanted, found = np.asarray(want, np.float64), np.asarray(got, np.float64)
    return wanted.size == found.size and bool(
        np.allclose(wanted.reshape(-1), found.reshape(-1), rtol=tolerance, atol=tolerance, equal_nan=True)
    )
