"""The verbs of the registry: what serves, and what serves instead."""

from __future__ import annotations

import itertools
import json
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from threefold.errors import NotServable
from threefold_ops.authoring.manifest import read_model_file
from threefold_ops.cli.choice import Aws, Choice, Region, Stage, choose
from threefold_ops.cli.console import Json, app, out, print_json
from threefold_ops.cli.reading import pair
from threefold_ops.errors import OperatorError
from threefold_ops.registry import collection, releases
from threefold_ops.registry.difference import differences
from threefold_ops.registry.inventory import Inventory
from threefold_ops.registry.reference import resolve
from threefold_ops.registry.releases import Act
from threefold_ops.system import find_model_bucket, find_system, open_registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from threefold.registry import Registry
    from threefold.release import Release

Why = Annotated[str, typer.Option("--why", help="The reason, kept in the release and its history.")]
By = Annotated[str | None, typer.Option("--by", help="Who does it; default: your user, on AWS your identity.")]


@dataclass(frozen=True, slots=True)
class _Desk:
    """What the verbs of the registry work with."""

    choice: Choice
    bucket: str
    registry: Registry

    def act(self, by: str | None, why: str) -> Act:
        """Who changes something, and why."""
        return Act(by or releases.operator_name(self.choice.target), why)


@contextmanager
def _desk(*, aws: bool, stage: str, region: str | None) -> Iterator[_Desk]:
    choice = choose(aws=aws, stage=stage, region=region)
    bucket = find_model_bucket(choice.target, choice.stage)
    with tempfile.TemporaryDirectory(prefix="threefold-") as cache:
        yield _Desk(choice, bucket, open_registry(choice.target, bucket, Path(cache)))


@app.command()
def promote(
    model: str,
    version: Annotated[str, typer.Argument(help="A published version: its label, digest, or the digest's beginning.")],
    *,
    why: Why = "",
    by: By = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Make a published package the champion, at all doors, without a deploy."""
    with _desk(aws=aws, stage=stage, region=region) as desk:
        before, after = releases.promote(desk.registry, model, version, desk.act(by, why))
    _tell(before, after, as_json=as_json)


@app.command()
def rollback(
    model: str,
    *,
    to: Annotated[str | None, typer.Option("--to", help="An earlier champion; default: the one before.")] = None,
    why: Why = "",
    by: By = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again."""
    with _desk(aws=aws, stage=stage, region=region) as desk:
        before, after = releases.roll_back(desk.registry, model, to, desk.act(by, why))
    _tell(before, after, as_json=as_json)


@app.command()
def configure(
    model: str,
    settings: Annotated[list[str] | None, typer.Argument(help="name=value, as under `serving` in model.yaml.")] = None,
    *,
    unset: Annotated[list[str] | None, typer.Option("--unset", help="Back to this setting's default.")] = None,
    file: Annotated[
        Path | None, typer.Option("--from", help="Take all settings of a model folder's model.yaml.")
    ] = None,
    why: Why = "",
    by: By = None,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Change how a model is operated, such as when it abstains; its champion stays."""
    if not (settings or unset or file):
        raise OperatorError("configure: want name=value, --unset or --from, got nothing to change")
    with _desk(aws=aws, stage=stage, region=region) as desk:
        changes: dict[str, Any] = {name: _value(text) for name, text in map(pair, settings or [])}
        dropped = list(unset or [])
        if file is not None:
            written = read_model_file(file / "model.yaml" if file.is_dir() else file)
            if written.name != model:
                raise OperatorError(f"{file}: want model.yaml of '{model}', got that of '{written.name}'")
            wanted = written.serving.settings()
            current = desk.registry.release(model).release.serving
            dropped += [name for name in current if name not in wanted]
            changes = {**wanted, **changes}
        before, after = releases.configure(desk.registry, model, changes, dropped, desk.act(by, why))
    _tell(before, after, as_json=as_json)


@app.command()
def history(
    model: str,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many releases, the newest first.")] = 20,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Say who released what, when and why."""
    with _desk(aws=aws, stage=stage, region=region) as desk:
        # One more, to say what the last one shown had changed.
        found = Inventory(desk.choice.target, desk.bucket).releases(model)
        entries = list(itertools.islice(found, limit + 1))
    if not entries:
        raise OperatorError(f"model: want one with a release, got '{model}'")
    rows = []
    for i, entry in enumerate(entries[:limit]):
        older = entries[i + 1].release if i + 1 < len(entries) else None
        said = [entry.problem] if entry.release is None else releases.changed(older, entry.release)
        rows.append((entry, said))
    if as_json:
        print_json(
            [
                {"id": entry.id, "changed": said, "release": entry.release and entry.release.to_json()}
                for entry, said in rows
            ]
        )
        return
    table = Table("at", "by", "what", "why", box=None, pad_edge=False)
    for entry, said in rows:
        release = entry.release
        what = "; ".join(said) or "the same again"
        table.add_row(*((release.at, release.by, what, release.why) if release else ("", "", what, "")))
    out.print(table)


@app.command()
def show(
    model: str,
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Show a model: its release, and the packages that wait for a promotion."""
    with _desk(aws=aws, stage=stage, region=region) as desk:
        release = desk.registry.release(model).release
        stored = desk.registry.packages.list(model)
        labels = Inventory(desk.choice.target, desk.bucket).labels(model)
        try:
            notes = desk.registry.packages.open(model, release.champion.digest).manifest.notes
        except NotServable as error:
            notes = str(error)
    roles = {version.digest: "previous" for version in release.previous}
    if release.challenger:
        roles[release.challenger.digest] = release.challenger.mode
    roles[release.champion.digest] = "champion"
    rows: list[dict[str, Any]] = [
        {
            "version": labels.get(one.digest, ""),
            "digest": one.digest,
            "role": roles.get(one.digest, "waiting"),
            "size_bytes": one.size_bytes,
            "published": one.modified.isoformat(timespec="seconds"),
        }
        for one in sorted(stored, key=lambda one: one.modified, reverse=True)
    ]
    if as_json:
        print_json({"release": release.to_json(), "notes": notes, "packages": rows})
        return
    out.print(f"{model}: champion {release.champion.version}; last changed {release.at} by {release.by}")
    if release.why:
        out.print(f"why: {release.why}")
    if notes:
        out.print(f"notes: {notes}")
    for name, value in release.serving.items():
        out.print(f"serving: {name} = {json.dumps(value)}")
    table = Table("version", "digest", "role", "published", "size", box=None, pad_edge=False)
    for row in rows:
        size = decimal(row["size_bytes"])
        table.add_row(row["version"], row["digest"][:12], row["role"], row["published"], size)
    out.print(table)


@app.command()
def models(
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """List the models and what serves for each."""
    with _desk(aws=aws, stage=stage, region=region) as desk:
        found = []
        unread = []
        for name in desk.registry.models():
            try:
                release = desk.registry.release(name).release
            except NotServable as error:
                unread.append({"model": name, "error": str(error)})
                continue
            named = {version.digest for version in release.named()}
            waiting = sum(one.digest not in named for one in desk.registry.packages.list(name))
            found.append((release, waiting))
    if as_json:
        print_json([*({**release.to_json(), "waiting": waiting} for release, waiting in found), *unread])
        return
    table = Table("model", "champion", "digest", "changed", "by", "earlier", "waiting", box=None, pad_edge=False)
    for each in unread:
        table.add_row(each["model"], each["error"])
    for release, waiting in found:
        champion = release.champion
        counts = (str(len(release.previous)), str(waiting))
        table.add_row(release.model, champion.version, champion.digest[:12], release.at, release.by, *counts)
    out.print(table)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="<model>, its champion; <model>@<version>; or a model folder.")],
    b: Annotated[str, typer.Argument(help="The same for the other package.")],
    *,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Say how two packages differ: signature, gate, notes, files. `compare` says how their answers differ."""

    def registry() -> Registry:
        choice = choose(aws=aws, stage=stage, region=region)
        return open_registry(choice.target, find_model_bucket(choice.target, choice.stage), folder / "packages")

    with tempfile.TemporaryDirectory(prefix="threefold-") as scratch:
        folder = Path(scratch)
        first, second = (resolve(text, registry, folder / name) for text, name in ((a, "a"), (b, "b")))
        found = differences(first, second)
    if as_json:
        print_json([{"what": what, "a": was, "b": now} for what, was, now in found])
        return
    for what, was, now in found:
        out.print(f"{what}: {_brief(was)} → {_brief(now)}")
    if not found:
        out.print("no difference")


@app.command()
def gc(
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without it the command only tells.")] = False,
    keep_days: Annotated[int, typer.Option(min=1, help="How far back releases and packages are kept.")] = 90,
    aws: Aws = False,
    stage: Stage = "dev",
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Remove the packages that no release, no job and nobody's rollback needs."""
    choice = choose(aws=aws, stage=stage, region=region)
    system = find_system(choice.target, choice.stage)
    plan = collection.plan(choice.target, system.model_bucket, system.jobs_table, keep_days=keep_days)
    done = collection.collect(choice.target, plan) if delete else None
    if as_json:
        print_json({"plan": plan.to_json(), "deleted": done and done.to_json()})
        return
    table = Table("model", "version", "digest", "published", "last named", "size", box=None, pad_edge=False)
    goes = [one for model in plan.models for one in model.goes] if done is None else [d.package for d in done.deleted]
    for one in goes:
        until = one.named_until.date().isoformat() if one.named_until else "never"
        size = decimal(one.size_bytes)
        table.add_row(one.model, one.version, one.digest[:12], one.published.date().isoformat(), until, size)
    if goes:
        out.print(table)
    stays = sum(sum(model.stays.values()) for model in plan.models)
    if done is None:
        size = decimal(plan.size_bytes)
        out.print(f"{len(goes)} packages could go ({size}), {stays} stay" + ("; delete with --delete" if goes else ""))
        return
    out.print(f"{len(goes)} packages deleted ({decimal(done.size_bytes)}), {stays} stay")
    for each in done.deleted:
        out.print(f"to have {each.package.key} back, delete its version {each.marker}")
    for one in done.restored:
        out.print(f"{one.model} {one.version} ({one.digest[:12]}) was brought back: it is needed by now")
    for model, reason in done.skipped.items():
        out.print(f"{model} was left alone: {reason}")


def _tell(before: Release, after: Release, *, as_json: bool) -> None:
    said = releases.changed(before, after) if after is not before else []
    if as_json:
        print_json({"changed": said, "release": after.to_json()})
        return
    champion = f"{after.champion.version} ({after.champion.digest[:12]})"
    out.print(f"{after.model}: {'; '.join(said)}" if said else f"{after.model}: champion {champion}, as before")


def _value(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def _brief(value: Any) -> str:  # noqa: ANN401 - JSON
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "…"  # noqa: PLR2004 - a line of a terminal
