"""Every deliberate error: a stable code, whether a retry can help, and a message of what, wanted, got."""

from __future__ import annotations

import reprlib
from typing import ClassVar, Final

_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


class ThreefoldError(Exception):
    """The root of all deliberate errors. Doors map `code` to their own answer."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False


class Malformed(ThreefoldError):
    """The bytes are not what the protocol asks for: broken JSON, a missing or mistyped envelope field."""

    code = "malformed"


class UnsupportedMediaType(ThreefoldError):
    """The body's media type is not one this door reads."""

    code = "unsupported_media_type"


class TooLarge(ThreefoldError):
    """The body or the answer is larger than the door carries."""

    code = "too_large"


class OutsideSignature(ThreefoldError):
    """Well-formed, but not within the model's signature."""

    code = "outside_signature"


class UnknownModel(ThreefoldError):
    """No release for this model, or no such version in its release."""

    code = "unknown_model"


class UnknownRoute(ThreefoldError):
    """No such path."""

    code = "unknown_route"


class UnknownJob(ThreefoldError):
    """The model has no such job."""

    code = "unknown_job"


class WrongState(ThreefoldError):
    """The job is in a state that does not allow it."""

    code = "wrong_state"


class NoAnswer(ThreefoldError):
    """No stored answer of the record can be served."""

    code = "no_answer"


class Forbidden(ThreefoldError):
    """The caller may not call this model, whether or not it exists."""

    code = "forbidden"


class NotServable(ThreefoldError):
    """The model exists, but cannot be served now."""

    code = "not_servable"
    retryable = True


class RegistryUnreachable(NotServable):
    """The versioned bucket does not answer."""

    code = "registry_unreachable"


class FeaturesUnavailable(NotServable):
    """What a model looks up for a record could not be read."""

    code = "features_unavailable"


class InvalidPackage(NotServable):
    """A model package that must not be served: digest, files, signature or self-check are wrong."""

    code = "invalid_package"
    retryable = False


class MissingPackage(NotServable):
    """A released package is not in the registry: removed, or not there yet. It may come, or come back."""

    code = "missing_package"


class InvalidManifest(ThreefoldError):
    """A model.yaml or a document that cannot be read as its schema."""

    code = "invalid_manifest"


class ReleaseConflict(ThreefoldError):
    """Somebody else changed the release document first."""

    code = "release_conflict"
    retryable = True


class InvalidTable(ThreefoldError):
    """An uploaded file that cannot be a job: no header, missing columns, unreadable text."""

    code = "invalid_table"


class StorageUnavailable(ThreefoldError):
    """Outcomes could not be stored or sent within the time there was."""

    code = "storage_unavailable"
    retryable = True


class GivenUp(ThreefoldError):
    """A message that failed so often that it waits in the dead-letter queue, so that others go on."""

    code = "given_up"


class UnknownPrediction(ThreefoldError):
    """The model has no stored outcome under this id."""

    code = "unknown_prediction"


def shown(value: object) -> str:
    """A value as a message may show it: short whatever its size and depth, and never a whole payload."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004
