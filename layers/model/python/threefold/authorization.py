"""Who may ask for which model over HTTPS: by the claims that API Gateway verified, and by one spelling of its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threefold.errors import Forbidden, UnknownModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from threefold.settings import Settings

Event = dict[str, Any]


def admit(event: Event, settings: Settings, scope: str) -> None:
    """See that a call may go on: to anybody, or to the model that its path names.

    Args:
        event: an event of API Gateway's HTTP API, payload format 2.0.
        settings: the function's.
        scope: the template of the OAuth scope that opens a model for what is asked, with `auth: jwt`.

    Raises:
        Forbidden: it may not; the same whether the model exists or not.
        UnknownModel: the model's name is spelled in another way than the plain one.
    """
    if settings.auth == "none" and not settings.endpoint_url:
        message = "auth: want iam or jwt on AWS, got none; only an embedded AWS may be open"
        raise Forbidden(message)
    model = (event.get("pathParameters") or {}).get("model")
    if model is None:
        return
    if "%" in event.get("rawPath", "").partition("/models/")[2].partition("/")[0]:
        # A policy on paths sees the text, the route sees what it decodes to: one spelling, or they differ.
        message = "path: want a model's plain name, got one with %"
        raise UnknownModel(message)
    if settings.auth == "jwt" and scope.format(model=model) not in scopes(event):
        message = "scope: want one that opens this model, got none"
        raise Forbidden(message)


def visible(event: Event, models: Iterable[str], settings: Settings) -> list[str]:
    """The models that a caller may know of: those that its token opens; all of them where no token is asked for."""
    if settings.auth != "jwt":
        return list(models)
    found = scopes(event)
    return [model for model in models if settings.scope_template.format(model=model) in found]


def scopes(event: Event) -> frozenset[str]:
    """The scopes of the verified token: `scope` is a text with spaces, `scp` the same or a list."""
    claims = event.get("requestContext", {}).get("authorizer", {}).get("jwt", {}).get("claims", {})
    found: set[str] = set()
    for claim in ("scope", "scp"):
        value = claims.get(claim, "")
        # API Gateway writes a claim that is a list as "[a b]".
        found.update(value if isinstance(value, list) else str(value).strip("[]").replace(",", " ").split())
    return frozenset(found)
