"""Least privilege: what a role may do, and why where a resource cannot be named to the letter."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aws_cdk import Acknowledgment, Stack, Validations
from aws_cdk import aws_iam as iam

if TYPE_CHECKING:
    from collections.abc import Sequence

    from constructs import Construct, IConstruct


class Grant(NamedTuple):
    """One statement of a role's policy.

    Attributes:
        actions: each by its name; none holds a wildcard.
        resources: ARNs.
        wildcard: why some of the resources hold a wildcard, if they do.
    """

    actions: Sequence[str]
    resources: Sequence[str]
    wildcard: str = ""


def make_role(scope: Construct, service: str, grants: Sequence[Grant]) -> iam.Role:
    """The role of an AWS service that may do what is granted, and nothing else.

    Its policy is inline, so that whatever waits for the role (an event source, say) waits for its permissions too.
    """
    statements = [iam.PolicyStatement(actions=list(grant.actions), resources=list(grant.resources)) for grant in grants]
    role = iam.Role(
        scope,
        "Role",
        assumed_by=iam.ServicePrincipal(service),
        inline_policies={"own": iam.PolicyDocument(statements=statements)},
    )
    stack = Stack.of(scope)
    for grant in grants:
        if grant.wildcard:
            findings = [f"AwsSolutions-IAM5[Resource::{_shown(stack, resource)}]" for resource in grant.resources]
            accept(role, grant.wildcard, *findings)
    return role


def accept(construct: IConstruct, reason: str, *findings: str) -> None:
    """Accept findings of cdk-nag on a construct, for a reason."""
    Validations.of(construct).acknowledge(*(Acknowledgment(id=finding, reason=reason) for finding in findings))


def _shown(stack: Stack, resource: str) -> str:
    """A resource as cdk-nag shows it: `<AWS::Region>` for a reference."""
    resolved = stack.resolve(resource)
    parts = [resolved] if isinstance(resolved, str) else resolved["Fn::Join"][1]
    return "".join(part if isinstance(part, str) else f"<{part['Ref']}>" for part in parts)
