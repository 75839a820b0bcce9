"""Where a deploy goes: an account, by the operator's own session, or an emulator, by credentials that open nothing."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config

EMULATOR_REGION: Final = "us-east-1"
_EMULATOR_KEY: Final = "test"


@dataclass(frozen=True)
class Target:
    """A session and, for an emulator, its endpoint."""

    session: boto3.Session
    endpoint_url: str | None = None

    @property
    def emulated(self) -> bool:
        """Whether this is an emulator, which needs what an account brings along."""
        return self.endpoint_url is not None

    @property
    def region(self) -> str:
        """The region, '' when the session names none."""
        return self.session.region_name or ""

    @property
    def account_id(self) -> str:
        """The account's number, asked for once."""
        return _account_id(self)

    def client(self, service: str) -> Any:  # noqa: ANN401 -- boto3 makes its clients at run time
        """Return a client of one service."""
        config = Config(retries={"mode": "standard", "max_attempts": 5})
        if self.emulated:
            config = config.merge(Config(s3={"addressing_style": "path"}))
        return self.session.client(service, endpoint_url=self.endpoint_url, config=config)  # type: ignore[call-overload]

    def resolve(self, text: str) -> str:
        """Fill in the placeholders for partition, account and region that an assembly's names hold."""
        if "${AWS::" not in text:
            return text
        return (
            text.replace("${AWS::Partition}", self.session.get_partition_for_region(self.region))
            .replace("${AWS::AccountId}", self.account_id)
            .replace("${AWS::Region}", self.region)
        )


def aws(region: str | None = None, profile: str | None = None) -> Target:
    """Return the account that the operator's own settings lead to."""
    return Target(boto3.Session(region_name=region, profile_name=profile))


def emulator(endpoint_url: str, region: str = EMULATOR_REGION) -> Target:
    """Return an emulator; neither profile nor credentials nor settings of the operator are read."""
    bare = botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    session = boto3.Session(
        aws_access_key_id=_EMULATOR_KEY,
        aws_secret_access_key=_EMULATOR_KEY,
        region_name=region,
        botocore_session=bare,
    )
    return Target(session, endpoint_url)


@functools.lru_cache(maxsize=8)
def _account_id(target: Target) -> str:
    return str(target.client("sts").get_caller_identity()["Account"])
