"""How tests read a synthesized assembly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aws_cdk import App

Resource = dict[str, Any]

# The stack of a function that does not stand in one of its own name.
HOMES = {"api": "predict", "monitor": "observability"}


def text(value: Any) -> str:
    """A value of a template as one string, `${…}` for what only AWS knows."""
    if not isinstance(value, dict):
        return str(value)
    ((function, argument),) = value.items()
    if function == "Fn::Join":
        separator, parts = argument
        return str(separator).join(text(part) for part in parts)
    return "${" + (argument if isinstance(argument, str) else ".".join(map(text, argument))) + "}"


@dataclass
class Assembly:
    """One synthesized app."""

    app: App
    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text())["artifacts"]

    @cached_property
    def templates(self) -> dict[str, dict[str, Any]]:
        """By the last word of the stack's name."""
        files = sorted(self.folder.glob("*.template.json"))
        return {path.name.split(".")[0].rpartition("-")[2]: json.loads(path.read_text()) for path in files}

    def resources(self, kind: str, stack: str | None = None) -> dict[str, Resource]:
        """Logical id to resource, of one stack or of all; ids of one stack do not come again in another's key."""
        return {
            (logical if stack else f"{name}/{logical}"): resource
            for name, template in self.templates.items()
            if stack is None or HOMES.get(stack, stack) == name
            for logical, resource in template["Resources"].items()
            if resource["Type"] == kind
        }

    def only(self, kind: str, stack: str, **properties: Any) -> Resource:
        """The properties of the one resource of a kind, or of the one that has these properties."""
        found = [
            resource["Properties"]
            for resource in self.resources(kind, stack).values()
            if all(text(resource["Properties"].get(key)) == value for key, value in properties.items())
        ]
        assert len(found) == 1, f"{len(found)} of {kind} in {stack} with {properties}"
        return found[0]

    def function(self, name: str) -> Resource:
        """The properties of a function by the last word of its name."""
        return self.resources("AWS::Lambda::Function", name)[self.function_id(name)]["Properties"]

    def function_id(self, name: str) -> str:
        """The logical id of a function by the last word of its name."""
        found = self.resources("AWS::Lambda::Function", name).items()
        return next(logical for logical, each in found if each["Properties"]["FunctionName"].rpartition("-")[2] == name)

    def alias(self, name: str) -> tuple[str, Resource]:
        """The logical id and the properties of the alias that a function is called by."""
        function = {"Ref": self.function_id(name)}
        found = self.resources("AWS::Lambda::Alias", name).items()
        ((logical, alias),) = [pair for pair in found if pair[1]["Properties"]["FunctionName"] == function]
        return logical, alias["Properties"]

    def statements(self, name: str, service: str) -> Iterator[tuple[list[str], list[str], Resource]]:
        """(actions, resources, statement) of all that a function's role may do, or another service's in its stack."""
        for logical, role in self.resources("AWS::IAM::Role", name).items():
            if service not in json.dumps(role["Properties"]["AssumeRolePolicyDocument"]):
                continue
            if service.startswith("lambda.") and self.function(name)["Role"]["Fn::GetAtt"][0] != logical:
                continue
            documents = [policy["PolicyDocument"] for policy in role["Properties"].get("Policies", [])]
            for policy in self.resources("AWS::IAM::Policy", name).values():
                if {"Ref": logical} in policy["Properties"]["Roles"]:
                    documents += [policy["Properties"]["PolicyDocument"]]
            for document in documents:
                for statement in document["Statement"]:
                    actions, resources = statement["Action"], statement["Resource"]
                    yield (
                        actions if isinstance(actions, list) else [actions],
                        [text(each) for each in (resources if isinstance(resources, list) else [resources])],
                        statement,
                    )

    def grants(self, name: str, service: str = "lambda.amazonaws.com") -> set[tuple[str, str]]:
        """(action, resource) of all that a function's role may do, or another service's in its stack."""
        return {
            (action, resource)
            for actions, resources, _ in self.statements(name, service)
            for action in actions
            for resource in resources
        }
