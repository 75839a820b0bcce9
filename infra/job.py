"""One job: a state machine that runs every chunk of a manifest, then finishes the job or says that it failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aws_cdk import Duration
from aws_cdk import aws_stepfunctions as states
from aws_cdk import aws_stepfunctions_tasks as tasks
from constructs import Construct

from infra.grants import Grant, accept, make_role
from threefold.names import RETRYABLE

if TYPE_CHECKING:
    from aws_cdk import aws_iam as iam
    from aws_cdk import aws_lambda as lambda_

    from infra.stage_stack import StageStack

# Stated by hand: CDK's default leaves out timeouts, Lambda.Unknown and TooManyRequestsException.
TRANSIENT: Final = (
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.Unknown",
    "States.Timeout",
    *RETRYABLE,
)
TRANSIENT_ATTEMPTS: Final = 8
# No concurrency is left, for as long as other chunks take: that is a queue to wait in, hours if need be.
THROTTLED: Final = "Lambda.TooManyRequestsException"
THROTTLED_ATTEMPTS: Final = 2_000
# All else that a function can fail with; more often than this is not bad luck.
FAILED: Final = "States.TaskFailed"
FAILED_ATTEMPTS: Final = 2
_TASK_SECONDS: Final = 930
# https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html: these take no resource.
_LOG_DELIVERY: Final = (
    "logs:CreateLogDelivery",
    "logs:GetLogDelivery",
    "logs:UpdateLogDelivery",
    "logs:DeleteLogDelivery",
    "logs:ListLogDeliveries",
    "logs:PutResourcePolicy",
    "logs:DescribeResourcePolicies",
    "logs:DescribeLogGroups",
)


class Job(Construct):
    """The state machine of jobs.

    Its input is {"job", "model", "manifest_bucket", "manifest_key"}; the manifest is a JSON list of chunks. Whatever
    it asks of the worker, it says the execution's name: one that another took the place of ends nothing.

    Attributes:
        state_machine: the state machine.
    """

    def __init__(self, stack: StageStack, worker: lambda_.IAlias) -> None:
        """Make the state machine over the alias of the batch function."""
        super().__init__(stack, "Job")
        self._worker = worker
        logs = stack.log_group(self, "Logs", f"/aws/vendedlogs/states/{stack.name('batch')}")
        self.state_machine = states.StateMachine(
            self,
            "Resource",
            state_machine_name=stack.name("batch"),
            state_machine_type=states.StateMachineType.STANDARD,
            definition_body=states.DefinitionBody.from_chainable(self._definition(stack.context.chunk_concurrency)),
            role=self._role(stack).without_policy_updates(),
            logs=states.LogOptions(destination=logs, level=states.LogLevel.ERROR, include_execution_data=False),
            tracing_enabled=stack.context.tracing,
            removal_policy=stack.removal_policy,
        )
        # What a distributed map needs stands in the role already, and is there before the state machine is.
        self.state_machine.node.try_remove_child("DistributedMapPolicy")
        accept(
            self.state_machine,
            "errors alone are logged: every chunk is an execution with a history of its own, and all events of a "
            "large job would cost more than the job",
            "AwsSolutions-SF1",
        )
        if not stack.context.tracing:
            accept(self.state_machine, "traces are paid for by those who ask for them: `tracing`", "AwsSolutions-SF2")

    def _definition(self, concurrency: int) -> states.IChainable:
        failed = self._task("Say that it failed", "fail", error=states.JsonPath.object_at("$.error"))
        failed.next(states.Fail(self, "Failed", error="JobFailed", cause="a chunk or the finish failed; see the job"))
        chunks = states.DistributedMap(
            self,
            "Chunks",
            label="Chunks",
            item_reader=states.S3JsonItemReader(
                bucket_name_path=states.JsonPath.string_at("$.manifest_bucket"),
                key=states.JsonPath.string_at("$.manifest_key"),
            ),
            item_selector=_payload("chunk", chunk=states.JsonPath.object_at("$$.Map.Item.Value")),
            max_concurrency=concurrency,
            # A chunk may take a function's 15 minutes; an express execution has 5.
            map_execution_type=states.StateMachineType.STANDARD,
            result_path=states.JsonPath.DISCARD,
        )
        chunks.item_processor(self._chunk())
        finish = self._task("Finish", "finish")
        for state in (chunks, finish):
            state.add_catch(failed, errors=["States.ALL"], result_path="$.error")
        incomplete = states.Fail(self, "Incomplete", error="JobIncomplete", cause="rows have no outcome; see the job")
        whole = states.Choice(self, "Is it whole?").when(
            states.Condition.string_equals("$.state", "incomplete"), incomplete
        )
        return chunks.next(finish).next(whole.otherwise(states.Succeed(self, "Done")))

    def _chunk(self) -> states.IChainable:
        """A worker that runs short of time hands on what is left; what it says is no more than that."""
        score = self._task("Score a chunk", None, result_path="$.answer")
        # All outputs of a map together must not pass 256 KiB, though nobody reads them.
        done = states.Pass(self, "Scored", result=states.Result.from_object({}))
        rest = states.Pass(
            self,
            "Take up the rest",
            parameters={
                "action": "chunk",
                **{name: states.JsonPath.string_at(f"$.{name}") for name in ("job", "model", "execution")},
                "chunk": states.JsonPath.object_at("$.answer.rest"),
            },
        )
        left = states.Choice(self, "Is there a rest?").when(states.Condition.is_present("$.answer.rest"), rest)
        rest.next(score)
        return score.next(left.otherwise(done))

    def _task(
        self, name: str, action: str | None, *, result_path: str | None = None, **more: object
    ) -> tasks.LambdaInvoke:
        """An invocation of the worker; without an action it passes its own input on."""
        task = tasks.LambdaInvoke(
            self,
            name,
            lambda_function=self._worker,
            payload=states.TaskInput.from_object(_payload(action, **more)) if action else None,
            payload_response_only=True,
            result_path=result_path,
            retry_on_service_exceptions=False,
            task_timeout=states.Timeout.duration(Duration.seconds(_TASK_SECONDS)),
        )
        retry: dict[str, Any] = {
            "interval": Duration.seconds(2),
            "backoff_rate": 2,
            "max_delay": Duration.seconds(60),
            "jitter_strategy": states.JitterType.FULL,
        }
        task.add_retry(errors=[THROTTLED], max_attempts=THROTTLED_ATTEMPTS, **retry)
        task.add_retry(errors=list(TRANSIENT), max_attempts=TRANSIENT_ATTEMPTS, **retry)
        task.add_retry(errors=[FAILED], max_attempts=FAILED_ATTEMPTS, **retry)
        return task

    def _role(self, stack: StageStack) -> iam.Role:
        name = stack.name("batch")
        grants = [
            Grant(["lambda:InvokeFunction"], [self._worker.function_arn]),
            # A bucket that comes as a path in the input gets no grant from the CDK.
            Grant(
                ["s3:GetObject"],
                [stack.bucket_arn("results", "*/chunks*.json")],
                wildcard="models and jobs name the manifests",
            ),
            # A distributed map starts its chunks as executions of the state machine itself.
            Grant(["states:StartExecution"], [stack.state_machine_arn]),
            Grant(
                ["states:DescribeExecution", "states:StopExecution"],
                [stack.arn("states", f"execution:{name}{part}:*") for part in ("", "/Chunks")],
                wildcard="executions of this state machine, each named when it starts",
            ),
            Grant(_LOG_DELIVERY, ["*"], wildcard="these actions take no resource"),
        ]
        return make_role(self, "states.amazonaws.com", grants)


def _payload(action: str, **more: object) -> dict[str, Any]:
    return {
        "action": action,
        "job": states.JsonPath.string_at("$.job"),
        "model": states.JsonPath.string_at("$.model"),
        "execution": states.JsonPath.string_at("$$.Execution.Name"),
        **more,
    }
