"""A stage's function: the defaults of all of them, stated once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aws_cdk import Duration, Size
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from infra.grants import Grant, accept, make_role
from infra.layers import architecture, layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.stage_stack import StageStack
    from threefold.settings import Settings

FUNCTIONS: Final = Path(__file__).resolve().parents[1] / "functions"
RUNTIME: Final = "python3.13"
ALIAS: Final = "live"
# numpy's OpenBLAS starts a thread per processor when it is imported, which costs a cold start 38 ms; the inference has
# threads of its own.
SINGLE_THREADED: Final = {"OPENBLAS_NUM_THREADS": "1"}


class StageFunction(Construct):
    """One function of `functions/`, with its role, its log group and the alias that callers use.

    Attributes:
        function: the function.
        alias: `live`, always on the newest version: code rolls forward by it.
        layers: what it stands on; a second function of the stack shares them.
    """

    def __init__(  # noqa: PLR0913 - each is the stack's choice
        self,
        stack: StageStack,
        *,
        settings: Settings,
        timeout_seconds: int,
        memory_megabytes: int,
        reserved_concurrency: int,
        grants: Sequence[Grant],
        beside: StageFunction | None = None,
    ) -> None:
        """Make the function of `settings.door`.

        Args:
            stack: where it stands.
            settings: all that it is told; its door names the module under `functions/`.
            timeout_seconds: how long one invocation may take.
            memory_megabytes: its memory, and with it its share of processors.
            reserved_concurrency: concurrency that is kept for it and that it never exceeds; 0 reserves none.
            grants: what it may do, beside writing its own log.
            beside: the function that the stack has already, if it has one; they share their layers.
        """
        door = settings.door
        super().__init__(stack, f"{door.capitalize()}Function" if beside else "Function")
        if not (FUNCTIONS / f"{door}.py").is_file():
            raise ValueError(f"function '{door}': want {FUNCTIONS / door}.py, got nothing there")
        name = stack.name(door)
        log_group = stack.log_group(self, "Logs", f"/aws/lambda/{name}")
        own_log = Grant(["logs:CreateLogStream", "logs:PutLogEvents"], [log_group.log_group_arn])
        role = make_role(self, "lambda.amazonaws.com", [*grants, own_log])
        runtime = lambda_.Runtime(RUNTIME, lambda_.RuntimeFamily.PYTHON)
        self.layers: Sequence[lambda_.ILayerVersion] = beside.layers if beside else layers(stack, door, runtime)
        self.function = lambda_.Function(
            self,
            "Resource",
            function_name=name,
            description=f"Threefold's {door} function",
            code=lambda_.Code.from_asset(str(FUNCTIONS), exclude=["*", f"!{door}.py"]),
            handler=f"{door}.handler",
            runtime=runtime,
            architecture=architecture(stack.context.architecture),
            layers=list(self.layers),
            environment={**settings.to_env(), **SINGLE_THREADED},
            role=role,
            memory_size=memory_megabytes,
            ephemeral_storage_size=Size.mebibytes(stack.context.ephemeral_storage),
            timeout=Duration.seconds(timeout_seconds),
            reserved_concurrent_executions=reserved_concurrency or None,
            log_group=log_group,
            tracing=lambda_.Tracing.ACTIVE if stack.context.tracing else None,
        )
        self.alias = lambda_.Alias(self, "Live", alias_name=ALIAS, version=self.function.current_version)
        accept(
            self.function,
            "the runtime layer's wheels are built for this Python; it moves with requirements/runtime.txt",
            "AwsSolutions-L1",
        )
