"""The workflow that a fork runs: GitHub reads it, its commands exist, and nothing in it is open that should not be."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from typer.main import get_command

from threefold_ops.cli import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
WORKFLOW: Final = ROOT / ".github" / "workflows" / "models.yml"
PAGE: Final = ROOT / "docs" / "pipeline.md"
EXPRESSION: Final = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
# A command ends with its line, or with what joins it to another.
COMMAND: Final = re.compile(r"\.venv/bin/threefold ([a-z]+)((?:[^\n|&;)]|\$\{[^}]*\})*)")
OPTION: Final = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
LIMITS: Final = ("LIMITS_CLASSIFICATION", "LIMITS_REGRESSION", "LIMITS_TENSORS")
CREDENTIALS: Final = "aws-actions/configure-aws-credentials"


@dataclass(frozen=True)
class Step:
    """A step of a job that is a shell text."""

    job: str
    name: str
    text: str


def workflow() -> dict[Any, Any]:
    """The workflow as YAML has it."""
    found: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return found


def jobs() -> dict[str, dict[str, Any]]:
    """The jobs by their ids."""
    found: dict[str, dict[str, Any]] = workflow()["jobs"]
    return found


def run_steps(job: str | None = None) -> Iterator[Step]:
    """The shell texts, of one job or of all."""
    for name, document in jobs().items():
        if job in {None, name}:
            for step in document["steps"]:
                if "run" in step:
                    yield Step(name, step["name"], step["run"])


def environment(job: str, values: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job's steps, with its expressions filled in.

    Args:
        job: its id.
        values: what each expression stands for.
    """
    texts = workflow()["env"] | jobs()[job].get("env", {})
    return {name: EXPRESSION.sub(lambda found: values[found[1]], str(text)) for name, text in texts.items()}


def test_github_finds_what_it_needs() -> None:
    document = workflow()
    # YAML 1.1 reads a bare `on` as true.
    events = document[True]
    assert set(events) == {"pull_request", "push", "workflow_dispatch"}
    assert events["push"] == {"branches": ["main"]}
    assert set(document) == {True, "name", "permissions", "defaults", "env", "jobs"}
    known = {"name", "if", "needs", "runs-on", "timeout-minutes", "permissions", "environment", "concurrency", "env"}
    for name, job in document["jobs"].items():
        assert set(job) <= known | {"steps"}, name
        assert job["runs-on"]
        assert 1 <= job["timeout-minutes"] <= 60
        assert set(job.get("needs", "").split()) <= set(document["jobs"])
        for step in job["steps"]:
            assert set(step) <= {"name", "if", "uses", "with", "run"}, name
            assert step["name"]
            assert ("run" in step) != ("uses" in step)


def test_every_input_is_asked_for_and_used() -> None:
    document = workflow()
    inputs = document[True]["workflow_dispatch"]["inputs"]
    assert set(inputs) == {"act", "model", "version", "why"}
    used = set(re.findall(r"\binputs\.([a-z]+)", WORKFLOW.read_text(encoding="utf-8")))
    assert used == set(inputs)
    assert [name for name, one in inputs.items() if one.get("required")] == ["act", "model", "why"]


def test_every_command_exists_with_its_options() -> None:
    verbs = get_command(load()).commands  # type: ignore[attr-defined]
    target = OPTION.findall(EXPRESSION.sub("", workflow()["env"]["TARGET"]))
    assert target == ["--aws", "--stage", "--region"]
    used = []
    for step in run_steps():
        for verb, rest in COMMAND.findall(step.text):
            assert verb in verbs, f"{step.name}: {verb}"
            parameters = verbs[verb].params
            known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
            options = {*OPTION.findall(rest), *(target if "$TARGET" in rest else ())}
            if "$limits" in rest:
                options.update(option for name in LIMITS for option in OPTION.findall(jobs()[step.job]["env"][name]))
                assert len(options) > len(target)
            assert options <= known, f"{step.name}: {verb} {options - known}"
            assert ("$TARGET" in rest) == ("--aws" in known), f"{step.name}: {verb}"
            used.append(verb)
    assert {"check", "compare", "publish", "promote", "rollback", "show"} <= set(used)
    # Each command was seen, whatever it is joined to.
    assert len(used) == sum(step.text.count("threefold ") for step in run_steps())


def test_every_other_program_and_file_exists() -> None:
    setup = next(step.text for step in run_steps("check") if "setup.py" in step.text)
    _, script, *names = setup.split()
    spec = importlib.util.spec_from_file_location("setup", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(names) <= set(module.ENVIRONMENTS)


@pytest.mark.parametrize("step", list(run_steps()), ids=lambda step: f"{step.job}: {step.name}")
def test_bash_reads_every_shell_text(step: Step) -> None:
    done = subprocess.run(["bash", "-n"], input=step.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_expression_stands_in_a_shell_text() -> None:
    # What people type into a form would become part of the program.
    assert [step for step in run_steps() if "${{" in step.text] == []
    given = {name for job in jobs().values() for name in job.get("env", {}) if "inputs." in job["env"][name]}
    assert given == {"MODEL", "VERSION", "WHY"}
    for step in run_steps():
        for name in (*given, "BY"):
            for found in re.finditer(rf"\$\{{?{name}\b", step.text):
                before = step.text[: found.start()].rpartition("\n")[2]
                quoted = before.count('"') % 2 == 1 or step.text[found.start() :].startswith(f"${{{name}:+")
                assert quoted, f"{step.name}: {name} stands without quotes"


def test_a_form_cannot_add_options() -> None:
    for step in run_steps("release"):
        for _, rest in COMMAND.findall(step.text):
            assert " -- " in rest, step.name
            assert "$MODEL" not in rest.partition(" -- ")[0]


def test_what_needs_aws_is_skipped_without_its_role() -> None:
    guarded = set()
    for name, job in jobs().items():
        takes = [step for step in job["steps"] if step.get("uses", "").startswith(CREDENTIALS)]
        uses_target = any("$TARGET" in step.get("run", "") for step in job["steps"])
        assert bool(takes) == uses_target == ("id-token" in job.get("permissions", {})), name
        for step in takes:
            (variable,) = re.findall(r"vars\.(\w+)", step["with"]["role-to-assume"])
            assert f"vars.{variable} != ''" in job["if"], name
            assert "||" not in job["if"], name
            guarded.add(variable)
            # Nothing goes to AWS before the role is taken.
            first = next(i for i, other in enumerate(job["steps"]) if "$TARGET" in other.get("run", ""))
            assert job["steps"].index(step) < first, name
    assert guarded == {"THREEFOLD_READ_ROLE", "THREEFOLD_PUBLISH_ROLE", "THREEFOLD_RELEASE_ROLE"}
    said = jobs()["skipped"]
    assert all(f"vars.{variable} == ''" in said["if"] for variable in guarded)
    assert all(variable in said["steps"][0]["run"] for variable in guarded)


def test_a_fresh_fork_is_told_what_is_skipped_and_is_green() -> None:
    (step,) = run_steps("skipped")
    values = {f"vars.THREEFOLD_{name}_ROLE": "" for name in ("READ", "PUBLISH", "RELEASE")}
    assert said(step, values) == 3
    assert said(step, values | {"vars.THREEFOLD_READ_ROLE": "arn:aws:iam::1:role/read"}) == 2
    assert said(step, dict.fromkeys(values, "arn:aws:iam::1:role/any")) == 0


def said(step: Step, values: dict[str, str]) -> int:
    """How many notices a step gives; it must succeed."""
    given = environment(
        step.job, {**values, "vars.THREEFOLD_STAGE || 'prod'": "", "vars.AWS_REGION || 'eu-central-1'": ""}
    )
    shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.text]
    done = subprocess.run(shell, env=given, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert all(line.startswith("::notice title=skipped::") for line in lines)
    return len(lines)


def test_no_job_has_more_permissions_than_it_uses() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    for name, job in jobs().items():
        takes_role = any(step.get("uses", "").startswith(CREDENTIALS) for step in job["steps"])
        wanted = {"contents": "read", "id-token": "write"} if takes_role else {"contents": "read"}
        assert job.get("permissions", {"contents": "read"}) == ({} if name == "skipped" else wanted), name
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False


def test_actions_are_pinned_to_a_major_version() -> None:
    uses = {step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step}
    assert uses
    assert all(re.fullmatch(r"(actions|aws-actions)/[a-z-]+@v\d+", use) for use in uses)


def test_only_a_person_promotes_and_reviewers_let_it_happen() -> None:
    for step in run_steps():
        changing = {verb for verb, _ in COMMAND.findall(step.text)} & {"promote", "rollback", "configure", "gc"}
        job = jobs()[step.job]
        assert bool(changing) <= (step.job == "release"), step.name
        if changing:
            assert job["environment"] == "production"
            assert job["if"].startswith("github.event_name == 'workflow_dispatch'")
            assert job["concurrency"] == {"group": "release-${{ inputs.model }}", "cancel-in-progress": False}
    acts = [step["if"] for step in jobs()["release"]["steps"] if "if" in step]
    options = workflow()[True]["workflow_dispatch"]["inputs"]["act"]["options"]
    assert acts == [f"inputs.act == '{act}'" for act in options]


def test_a_pull_request_from_a_fork_asks_for_no_credentials() -> None:
    assert "github.event.pull_request.head.repo.full_name == github.repository" in jobs()["compare"]["if"]


def test_the_page_names_every_variable_job_and_threshold() -> None:
    page, text = PAGE.read_text(encoding="utf-8"), WORKFLOW.read_text(encoding="utf-8")
    for name in {*re.findall(r"vars\.(\w+)", text), *jobs(), *LIMITS, "production"}:
        assert f"`{name}`" in page, name
    assert f"`{jobs()['check']['name']}`" in page
