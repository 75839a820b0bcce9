"""The HTTPS door: API Gateway's HTTP API in front of the predict function, and of api for all that is no scoring."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from aws_cdk import Duration
from aws_cdk import aws_apigatewayv2 as apigateway
from aws_cdk import aws_apigatewayv2_authorizers as authorizers
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_ssm as ssm

from infra.function import StageFunction
from infra.grants import Grant, accept
from infra.stage_stack import StageStack
from threefold.names import (
    API_ROUTES,
    EXPOSED_HEADERS,
    LOOKUP_INDEX,
    OPEN_ROUTES,
    PENDING_PREFIX,
    PREDICT_ROUTES,
    Door,
    Output,
)
from threefold.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from constructs import Construct

    from infra.context import DeploymentContext

# https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-quotas.html: an integration has 30 s.
TIMEOUT_SECONDS: Final = 29
# https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-logging-variables.html; no payloads, no tokens.
ACCESS_LOG: Final = {
    "request": "$context.requestId",
    "at": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "route": "$context.routeKey",
    "path": "$context.path",
    "status": "$context.status",
    "bytes": "$context.responseLength",
    "latency_ms": "$context.responseLatency",
    "integration_ms": "$context.integrationLatency",
    "error": "$context.error.message",
    "integration_error": "$context.integrationErrorMessage",
    "authorizer_error": "$context.authorizer.error",
}
# What a signed or tokened call from a browser carries, and the length that precedes binary tensors.
_REQUEST_HEADERS: Final = (
    *("authorization", "content-type", "inference-header-content-length"),
    *("x-amz-date", "x-amz-security-token", "x-amz-content-sha256"),
)


class PredictStack(StageStack):
    """The predict and api functions and their routes."""

    def __init__(self, scope: Construct, context: DeploymentContext) -> None:
        """Make the functions, the API and its stage."""
        super().__init__(scope, Door.PREDICT, context, "predictions over HTTPS")
        predict = StageFunction(
            self,
            settings=Settings(
                door=Door.PREDICT,
                stage=context.stage,
                auth=context.auth,
                scope_template=context.scope_template,
                model_bucket=self.bucket("models"),
                requests_queue=self.queue_name("requests"),
                features_table=self.name("features"),
                refresh_seconds=context.refresh_seconds,
            ),
            timeout_seconds=TIMEOUT_SECONDS,
            memory_megabytes=context.predict_memory,
            reserved_concurrency=context.predict_reserved_concurrency,
            grants=[
                *self.registry_read(),
                Grant(["sqs:SendMessage", "sqs:GetQueueUrl"], [self.arn("sqs", self.queue_name("requests"))]),
                Grant(["dynamodb:BatchGetItem"], [self.table_arn("features")]),
            ],
        )
        operations = self._operations(predict)
        api = apigateway.HttpApi(
            self,
            "Api",
            api_name=self.name("predict"),
            create_default_stage=False,
            cors_preflight=apigateway.CorsPreflightOptions(
                allow_origins=context.origins,
                allow_methods=[apigateway.CorsHttpMethod.GET, apigateway.CorsHttpMethod.POST],
                allow_headers=list(_REQUEST_HEADERS),
                expose_headers=list(EXPOSED_HEADERS),
                max_age=Duration.hours(1),
            ),
        )
        authorizer = self._authorizer()
        self._add_routes(api, "Predict", predict, PREDICT_ROUTES, authorizer)
        self._add_routes(api, "Operations", operations, API_ROUTES, authorizer)
        stage = apigateway.HttpStage(
            self,
            "Stage",
            http_api=api,
            stage_name="$default",
            auto_deploy=True,
            throttle=apigateway.ThrottleSettings(rate_limit=context.throttle_rate, burst_limit=context.throttle_burst),
        )
        self._log_access(stage)
        # For the observability stack's metrics: the id is API Gateway's choice, so no name can be computed.
        ssm.StringParameter(self, "ApiId", parameter_name=api_id_parameter(context), string_value=api.api_id)
        self.output(Output.API_URL, stage.url)

    def _log_access(self, stage: apigateway.HttpStage) -> None:
        name = f"/aws/vendedlogs/apis/{self.name('predict')}"
        stage.node.add_dependency(self.log_group(self, "AccessLogs", name))
        resource = stage.node.default_child
        assert isinstance(resource, apigateway.CfnStage)
        resource.access_log_settings = apigateway.CfnStage.AccessLogSettingsProperty(
            # API Gateway wants the group's ARN without the `:*` that CloudFormation's own has.
            destination_arn=self.arn("logs", f"log-group:{name}"),
            format=json.dumps(ACCESS_LOG),
        )

    def _operations(self, predict: StageFunction) -> StageFunction:
        """The api function: it needs what scoring must not have, and scoring keeps its quick start."""
        context = self.context
        return StageFunction(
            self,
            settings=Settings(
                door=Door.API,
                stage=context.stage,
                auth=context.auth,
                scope_template=context.scope_template,
                operate_scope_template=context.operate_scope_template,
                model_bucket=self.bucket("models"),
                inbox_bucket=self.bucket("inbox"),
                results_bucket=self.bucket("results"),
                predictions_table=self.name("predictions"),
                jobs_table=self.name("jobs"),
                state_machine_arn=self.state_machine_arn,
                refresh_seconds=context.refresh_seconds,
                ttl_days=context.ttl_days,
                pending_minutes=context.pending_minutes,
            ),
            timeout_seconds=TIMEOUT_SECONDS,
            memory_megabytes=context.api_memory,
            reserved_concurrency=0,
            grants=[
                *self.registry_read(),
                # A presigned form uploads as the function that signed it.
                Grant(
                    ["s3:PutObject"],
                    [self.bucket_arn("inbox", keys) for keys in ("*/*.csv", "*/*.csv.gz", f"{PENDING_PREFIX}*.jsonl")],
                    wildcard="models and uploaders name the keys",
                ),
                # An upload's job is known by the version of its object.
                Grant(["s3:ListBucketVersions"], [self.bucket_arn("inbox")]),
                Grant(["s3:GetObject"], [self.bucket_arn("results", "*")], wildcard="models and jobs name the results"),
                # What a resumed job has still to do.
                Grant(
                    ["s3:PutObject", "s3:PutObjectTagging"],
                    [self.bucket_arn("results", "*/chunks-*.json")],
                    wildcard="models and jobs name the lists",
                ),
                # Without it S3 says 403 of a key that is not there.
                Grant(["s3:ListBucket"], [self.bucket_arn("results")]),
                Grant(
                    ["dynamodb:GetItem", "dynamodb:BatchGetItem", "dynamodb:Query", "dynamodb:UpdateItem"],
                    [self.table_arn("jobs")],
                ),
                Grant(
                    ["dynamodb:Query", "dynamodb:GetItem"],
                    [self.table_arn("predictions"), f"{self.table_arn('predictions')}/index/{LOOKUP_INDEX}"],
                ),
                Grant(["states:StartExecution"], [self.state_machine_arn]),
                Grant(
                    ["states:StopExecution"],
                    [self.arn("states", f"execution:{self.name('batch')}:*")],
                    wildcard="jobs name the executions",
                ),
                Grant(["events:PutEvents"], [self.arn("events", "event-bus/default")]),
            ],
            beside=predict,
        )

    def _add_routes(
        self,
        api: apigateway.HttpApi,
        construct_id: str,
        function: StageFunction,
        routes: Iterable[tuple[str, str]],
        authorizer: apigateway.IHttpRouteAuthorizer | None,
    ) -> None:
        integration = integrations.HttpLambdaIntegration(
            construct_id,
            function.alias,
            payload_format_version=apigateway.PayloadFormatVersion.VERSION_2_0,
            # One permission for the API, not one a route.
            scope_permission_to_route=False,
        )
        for method, path in routes:
            is_open = path in OPEN_ROUTES or authorizer is None
            added = api.add_routes(
                path=path,
                methods=[apigateway.HttpMethod(method)],
                integration=integration,
                authorizer=apigateway.HttpNoneAuthorizer() if is_open else authorizer,
            )
            if is_open:
                reason = (
                    "health is for load balancers and monitors, which hold no credentials; it names no model"
                    if path in OPEN_ROUTES
                    else "auth=none is for the embedded AWS: the stack is pinned to its account, and the function "
                    "refuses to serve anywhere else"
                )
                for route in added:
                    accept(route, reason, "AwsSolutions-APIG4")

    def _authorizer(self) -> apigateway.IHttpRouteAuthorizer | None:
        if self.context.auth == "none":
            return None
        if self.context.auth == "iam":
            return authorizers.HttpIamAuthorizer()
        return authorizers.HttpJwtAuthorizer(
            "Jwt",
            self.context.jwt_issuer,
            jwt_audience=self.context.audiences,
        )


def api_id_parameter(context: DeploymentContext) -> str:
    """The SSM parameter that holds the API's id."""
    return f"/threefold/{context.stage}/api-id"
