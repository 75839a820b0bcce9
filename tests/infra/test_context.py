from __future__ import annotations

import pytest

from infra import context
from threefold.names import Context

LAYERS = {"modelLayerKey": "k", "modelLayerVersion": "v", "runtimeLayer": "r"}


def test_nothing_given_is_stage_dev_with_signed_callers_and_no_doors() -> None:
    found = context.read({})
    assert (found.stage, found.auth, found.serves, found.retains) == ("dev", "iam", False, False)


def test_text_of_the_command_line_becomes_what_the_key_takes() -> None:
    found = context.read({"refreshSeconds": "2.5", "streamBatchSize": "50", "tracing": "true"})
    assert (found.refresh_seconds, found.stream_batch_size, found.tracing) == (2.5, 50, True)


def test_values_of_cdk_json_keep_their_types() -> None:
    found = context.read({"refreshSeconds": 10, "streamBatchSize": 50, "tracing": True})
    assert (found.refresh_seconds, found.stream_batch_size, found.tracing) == (10.0, 50, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage", "Prod"),
        ("stage", "a-name-that-is-too-long"),
        ("stage", "dev-"),
        ("auth", "apikey"),
        ("architecture", "arm"),
        ("logRetentionDays", "31"),
        ("streamBatchSize", "0"),
        ("streamBatchSize", "10001"),
        ("streamBatchSize", "many"),
        ("streamBatchSize", 1.5),
        ("streamMaxConcurrency", "1"),
        ("chunkConcurrency", True),
        ("ephemeralStorage", "511"),
        ("ephemeralStorage", "10241"),
        ("tracing", "yes"),
        ("refreshSeconds", "nan"),
        ("refreshSeconds", "-1"),
        ("scopeTemplate", "predict"),
        ("alarmEmail", "operator"),
        ("jwtIssuer", "issuer.example"),
        ("retain", "true"),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_value(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"context '{key}': want .*, got {value!r}"):
        context.read({key: value})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"auth": "jwt", "jwtAudience": "a"}, "jwtIssuer"),
        ({"auth": "jwt", "jwtIssuer": "https://i.example"}, "jwtAudience"),
        ({"modelLayerVersion": "v", "runtimeLayer": "r"}, "modelLayerKey"),
        ({"modelLayerVersion": "v", "modelLayerKey": "k"}, "runtimeLayer"),
        ({**LAYERS, "streamReservedConcurrency": "5"}, "streamReservedConcurrency"),
        ({**LAYERS, "batchReservedConcurrency": "7"}, "batchReservedConcurrency"),
        ({"chunkConcurrency": "8", "writeBudget": "7"}, "writeBudget"),
    ],
)
def test_keys_that_need_each_other_are_refused_apart(given: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=f"context '{missing}': want"):
        context.read(given)


def test_a_misspelt_key_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"got 'modelLayerVersoin' .is 'modelLayerVersion' meant"):
        context.read({"modelLayerVersoin": "v"})


def test_the_keys_of_the_cdk_are_none_of_ours() -> None:
    assert context.read({"@aws-cdk/core:newStyle": True, "aws:cdk:enable-asset-metadata": True}) == context.read({})


def test_the_table_has_every_key_once_and_says_what_it_means() -> None:
    rows = context.rows()
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys) == len(context.DeploymentContext.__dataclass_fields__)
    assert all(row.meaning and row.kind for row in rows)
    assert (
        context.Row(
            "streamMaxConcurrency",
            "whole number from 2 to 1000",
            "10",
            rows[keys.index("streamMaxConcurrency")].meaning,
        )
        in rows
    )


def test_the_names_that_others_use_are_keys() -> None:
    shared = {value for name, value in vars(Context).items() if not name.startswith("_")}
    assert shared <= {row.key for row in context.rows()}


@pytest.mark.parametrize(
    ("given", "retains"),
    [
        ({"stage": "prod"}, True),
        ({"stage": "dev"}, False),
        ({"stage": "prod", "retain": "never"}, False),
        ({"stage": "staging", "retain": "always"}, True),
    ],
)
def test_data_outlive_their_stack_in_prod_or_where_it_is_asked_for(given: dict[str, str], retains: bool) -> None:
    assert context.read(given).retains is retains
