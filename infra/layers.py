"""The two layers under every function: the third-party wheels, and our code with the champions."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3

if TYPE_CHECKING:
    from infra.stage_stack import StageStack


def layers(stack: StageStack, door: str, runtime: lambda_.Runtime) -> list[lambda_.ILayerVersion]:
    """Make both layers inside a serving stack; no stack depends on another's layers.

    Raises:
        ValueError: the runtime layer is no zip, and no folder that holds `python/`.
    """
    context = stack.context
    architectures = [architecture(context.architecture)]
    runtime_layer = Path(context.runtime_layer)
    if not ((runtime_layer / "python").is_dir() or zipfile.is_zipfile(runtime_layer)):
        raise ValueError(
            f"context 'runtimeLayer': want a zip or a folder that holds python/, got {str(runtime_layer)!r}"
        )
    # A deployed function names one exact object version; the id tells versions apart, so that a layer-only change is
    # seen as the new layer it is.
    version = hashlib.sha256(f"{context.model_layer_key}\n{context.model_layer_version}".encode()).hexdigest()[:8]
    bucket = s3.Bucket.from_bucket_name(stack, "Models", stack.bucket("models"))
    return [
        lambda_.LayerVersion(
            stack,
            "RuntimeLayer",
            layer_version_name=stack.name(f"{door}-runtime"),
            description="third-party wheels",
            # Nothing is excluded: this layer ships its .pyc on purpose.
            code=lambda_.Code.from_asset(str(runtime_layer)),
            compatible_runtimes=[runtime],
            compatible_architectures=architectures,
        ),
        lambda_.LayerVersion(
            stack,
            f"ModelLayer{version}",
            layer_version_name=stack.name(f"{door}-model"),
            description=f"threefold and the champions: {context.model_layer_key}",
            code=lambda_.Code.from_bucket(bucket, context.model_layer_key, context.model_layer_version),
            compatible_runtimes=[runtime],
            compatible_architectures=architectures,
        ),
    ]


def architecture(name: str) -> lambda_.Architecture:
    """The processor by its name in the context."""
    return {"x86_64": lambda_.Architecture.X86_64, "arm64": lambda_.Architecture.ARM_64}[name]
