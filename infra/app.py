"""The CDK app: context in, one stage's stacks out; it calls no AWS."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

from aws_cdk import App

from infra.batch_stack import BatchStack
from infra.context import read
from infra.observability_stack import ObservabilityStack
from infra.predict_stack import PredictStack
from infra.store_stack import StoreStack
from infra.stream_stack import StreamStack

if TYPE_CHECKING:
    from infra.stage_stack import StageStack

# Set in code: an app that is made without cdk.json, as the tests and the deploy make it, would not have them.
FLAGS: Final = (
    # Without it a change of a layer alone leaves the function's version, and `live`, on the old code.
    "@aws-cdk/aws-lambda:recognizeLayerVersion",
    "@aws-cdk/aws-lambda:recognizeVersionProps",
    "@aws-cdk/aws-iam:minimizePolicies",
    "@aws-cdk/aws-iam:standardizedServicePrincipals",
)


def build(app: App) -> list[StageStack]:
    """Make the stacks of the app's context, in deploy order; without a model layer the store alone.

    Raises:
        ValueError: the context is wrong; the message names the key, what is wanted and what was got.
    """
    for flag in FLAGS:
        app.node.set_context(flag, True)
    context = read(app.node.get_all_context())
    store = StoreStack(app, context)
    if not context.serves:
        return [store]
    doors = [PredictStack(app, context), BatchStack(app, context), StreamStack(app, context)]
    observability = ObservabilityStack(app, context)
    for door in doors:
        door.add_stack_dependency(store)
        observability.add_stack_dependency(door)
    return [store, *doors, observability]


def main() -> None:
    """Synthesize to where the CDK says (`CDK_OUTDIR`), from the context it gives (`CDK_CONTEXT_JSON`)."""
    app = App(analytics_reporting=False, tree_metadata=False)
    try:
        stacks = build(app)
    except ValueError as error:
        sys.exit(f"threefold: {error}")
    app.synth()
    if len(stacks) == 1:
        print(  # noqa: T201 - this is the command's only word
            "threefold: only the store was synthesized; for the rest run `threefold deploy`, which builds the model "
            "layer and sets modelLayerKey, modelLayerVersion and runtimeLayer",
            file=sys.stderr,
        )


def serve() -> None:
    """Synthesize for each line of standard input, `{"context", "outdir"}`; each is answered with a line, `done`.

    A deploy needs two assemblies, the store's and then all, and importing the CDK takes longer than writing either.
    """
    for line in sys.stdin:
        request = json.loads(line)
        app = App(context=request["context"], outdir=request["outdir"], analytics_reporting=False, tree_metadata=False)
        try:
            build(app)
        except ValueError as error:
            sys.exit(f"threefold: {error}")
        app.synth()
        print("done", flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["--serve"] else main()
