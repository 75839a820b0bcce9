"""What a serving function commonly imports at its top: boto3, Powertools' resolver, tracer and parser, pydantic."""

import json
import os
from typing import Any

import boto3
import numpy as np
import onnxruntime as ort
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.parser import BaseModel
from pydantic import create_model

names = [f"feature_{i:02d}" for i in range(30)]
fields: dict[str, Any] = dict.fromkeys(names, (float, ...))
Record = create_model("Record", id=(str, ...), **fields)


class Records(BaseModel):
    """The body of a request."""

    records: list[Record]  # type: ignore[valid-type]


class Prediction(BaseModel):
    """What one record gets."""

    label: int
    score: float


class Predictions(BaseModel):
    """The body of an answer."""

    predictions: list[Prediction]


app = APIGatewayHttpResolver(enable_validation=True)
logger, tracer, metrics = Logger(), Tracer(), Metrics(namespace="bench")
bucket = boto3.client("s3")
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
tensor = session.get_inputs()[0].name


@app.post("/models/<model>/predictions")
@tracer.capture_method
def predict(model: str, body: Records) -> Predictions:
    """Score the records by the release in the bucket."""
    release = json.loads(
        bucket.get_object(Bucket=os.environ["BENCH_BUCKET"], Key=f"releases/{model}.json")["Body"].read()
    )
    x = np.array([[getattr(record, name) for name in names] for record in body.records], np.float32)
    labels, scores = session.run(None, {tensor: x})
    logger.info("predicted", model=model, version=release["champion"]["version"])
    metrics.add_metric("Predictions", MetricUnit.Count, len(x))
    rows = zip(labels.tolist(), scores.tolist(), strict=True)
    return Predictions(predictions=[Prediction(label=label, score=row[label]) for label, row in rows])


@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - Lambda's context
    """Answer one request of API Gateway."""
    return app.resolve(event, context)
