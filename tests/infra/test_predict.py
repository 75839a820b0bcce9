from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.infra.assembly import text
from threefold.names import API_ROUTES, OPEN_ROUTES, PREDICT_ROUTES

if TYPE_CHECKING:
    from tests.infra.assembly import Assembly

ROUTES = {
    "predict": {f"{method} {path}" for method, path in PREDICT_ROUTES},
    "api": {f"{method} {path}" for method, path in API_ROUTES},
}
OPEN = {f"{method} {path}" for method, path in PREDICT_ROUTES if path in OPEN_ROUTES}


def routes(assembly: Assembly) -> dict[str, dict[str, object]]:
    found = assembly.resources("AWS::ApiGatewayV2::Route", "predict").values()
    return {route["Properties"]["RouteKey"]: route["Properties"] for route in found}


def test_the_routes_are_those_that_the_functions_answer(each: Assembly) -> None:
    assert not ROUTES["predict"] & ROUTES["api"]
    assert set(routes(each)) == ROUTES["predict"] | ROUTES["api"]
    assert OPEN


@pytest.mark.parametrize("name", ["predict", "api"])
def test_every_route_goes_to_its_function_s_alias(name: str, iam: Assembly) -> None:
    alias, _ = iam.alias(name)
    integrations = iam.resources("AWS::ApiGatewayV2::Integration", "predict")
    ((integration, properties),) = [
        (logical, found["Properties"])
        for logical, found in integrations.items()
        if found["Properties"]["IntegrationUri"] == {"Ref": alias}
    ]
    assert (properties["IntegrationType"], properties["PayloadFormatVersion"]) == ("AWS_PROXY", "2.0")
    targets = {text(route["Target"]) for key, route in routes(iam).items() if key in ROUTES[name]}
    assert targets == {f"integrations/${{{integration}}}"}
    permissions = [each["Properties"] for each in iam.resources("AWS::Lambda::Permission", "predict").values()]
    (permission,) = [each for each in permissions if each["FunctionName"] == {"Ref": alias}]
    assert permission["Principal"] == "apigateway.amazonaws.com"
    (api,) = iam.resources("AWS::ApiGatewayV2::Api", "predict")
    assert f":${{{api}}}/" in text(permission["SourceArn"])


@pytest.mark.parametrize(("auth", "kind"), [("iam", "AWS_IAM"), ("jwt", "JWT"), ("none", "NONE")])
def test_health_is_open_and_all_else_is_as_auth_says(auth: str, kind: str, request: pytest.FixtureRequest) -> None:
    for key, route in routes(request.getfixturevalue(auth)).items():
        assert route.get("AuthorizationType", "NONE") == ("NONE" if key in OPEN else kind), key


def test_tokens_are_checked_against_issuer_and_audiences(jwt: Assembly, iam: Assembly) -> None:
    authorizer = jwt.only("AWS::ApiGatewayV2::Authorizer", "predict")
    assert authorizer["AuthorizerType"] == "JWT"
    assert authorizer["JwtConfiguration"] == {"Issuer": "https://issuer.example", "Audience": ["one", "two"]}
    (logical,) = jwt.resources("AWS::ApiGatewayV2::Authorizer", "predict")
    guarded = [route for key, route in routes(jwt).items() if key not in OPEN]
    assert all(route["AuthorizerId"] == {"Ref": logical} for route in guarded)
    assert not iam.resources("AWS::ApiGatewayV2::Authorizer")


def test_the_functions_know_how_its_callers_are_checked(each: Assembly, iam: Assembly, jwt: Assembly) -> None:
    # The default, iam, is not written.
    wanted = None if each is iam else "jwt" if each is jwt else "none"
    for name in ROUTES:
        assert each.function(name)["Environment"]["Variables"].get("THREEFOLD_AUTH") == wanted


def test_calls_are_throttled_as_the_context_says(iam: Assembly, prod: Assembly) -> None:
    for assembly, rate, burst in ((iam, 500, 1000), (prod, 20, 40)):
        stage = assembly.only("AWS::ApiGatewayV2::Stage", "predict", StageName="$default")
        assert stage["AutoDeploy"] is True
        assert stage["DefaultRouteSettings"]["ThrottlingRateLimit"] == rate
        assert stage["DefaultRouteSettings"]["ThrottlingBurstLimit"] == burst


def test_access_is_logged_as_json_without_payloads_or_tokens(iam: Assembly) -> None:
    settings = iam.only("AWS::ApiGatewayV2::Stage", "predict")["AccessLogSettings"]
    fields = json.loads(settings["Format"])
    assert {"$context.requestId", "$context.routeKey", "$context.status"} <= set(fields.values())
    assert not [value for value in fields.values() if "authorizer.claims" in value or "body" in value.lower()]
    groups = {
        text(group["Properties"]["LogGroupName"]) for group in iam.resources("AWS::Logs::LogGroup", "predict").values()
    }
    name = text(settings["DestinationArn"]).partition(":log-group:")[2]
    assert name in groups
    assert not name.startswith("/aws/lambda/")


def test_browsers_may_read_what_an_answer_says_of_itself(iam: Assembly, prod: Assembly) -> None:
    cors = iam.only("AWS::ApiGatewayV2::Api", "predict")["CorsConfiguration"]
    exposed = {"x-model-version", "x-model-digest", "server-timing", "x-prediction-id", "x-precomputed"}
    assert exposed <= set(cors["ExposeHeaders"])
    assert set(cors["AllowMethods"]) >= {method for method, _ in (*PREDICT_ROUTES, *API_ROUTES)}
    assert cors["AllowOrigins"] == ["*"]
    assert not cors.get("AllowCredentials")
    origins = prod.only("AWS::ApiGatewayV2::Api", "predict")["CorsConfiguration"]["AllowOrigins"]
    assert origins == ["https://one.example", "https://two.example"]
