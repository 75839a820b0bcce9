"""The least that can answer a cold start: numpy, onnxruntime, a session and json."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
tensor = session.get_inputs()[0].name
names = [f"feature_{i:02d}" for i in range(30)]


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Score the records."""
    records = json.loads(event["body"])["records"]
    x = np.array([[record[name] for name in names] for record in records], np.float32)
    labels, scores = session.run(None, {tensor: x})
    rows = zip(labels.tolist(), scores.tolist(), strict=True)
    predictions = [{"label": label, "score": row[label]} for label, row in rows]
    return {"statusCode": 200, "headers": {}, "body": json.dumps({"predictions": predictions})}
