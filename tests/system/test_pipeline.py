"""The workflow's own shell texts, run in order in a fork, against the running system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.ops.test_pipeline import environment, run_steps

if TYPE_CHECKING:
    from tests.system.conftest import Local

pytestmark = pytest.mark.system

ROOT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "forked"
# What a fork needs to run the command; the environments are this clone's.
CODE: Final = ("ops", "layers", "infra", "functions", "requirements", "pyproject.toml")
GIT: Final = ("git", "-c", "user.name=operator", "-c", "user.email=operator@example.com")
HOSTILE: Final = '"; touch pwned; echo "$(touch pwned)`touch pwned`\' --to 9 ${HOME} * \\'


@dataclass
class Fork:
    """A fork with models of its own, in a folder of its own."""

    root: Path
    state: Path

    def commit(self, version: str) -> None:
        """Write a version of the model, and commit all."""
        folder = self.root / "models" / MODEL
        if not folder.exists():
            shutil.copytree(ROOT / "models" / "diabetes", folder)
        text = (ROOT / "models" / "diabetes" / "model.yaml").read_text()
        text = text.replace("name: diabetes", f"name: {MODEL}").replace("version: 1.0.0", f"version: {version}")
        (folder / "model.yaml").write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"Version {version}")

    def git(self, *words: str) -> None:
        subprocess.run([*GIT, *words], cwd=self.root, check=True, capture_output=True)

    def run(self, job: str, *, only: str | None = None, code: int = 0, **inputs: str) -> str:
        """Run the shell texts of a job as GitHub would; returns what they printed."""
        values = {f"inputs.{name}": value for name, value in inputs.items()}
        values |= {"github.triggering_actor": "octocat"}
        values |= {"vars.THREEFOLD_STAGE || 'prod'": "dev", "vars.AWS_REGION || 'eu-central-1'": "us-east-1"}
        given = {**environment(job, values), "TARGET": ""}
        said, codes = "", []
        for step in run_steps(job):
            if step.text.startswith("python3 ops/setup.py") or only not in {None, step.name, "show what serves now"}:
                continue
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.text],
                cwd=self.root,
                env={**os.environ, **given, **self._environment()},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            said += done.stdout + done.stderr
            codes.append(done.returncode)
            if done.returncode:
                break
        assert codes, f"{job}: want steps, got none"
        assert codes[-1] == code, said
        return said

    def serving(self) -> dict[str, Any]:
        """The model's release."""
        done = subprocess.run(
            [".venv/bin/threefold", "show", MODEL, "--json"],
            cwd=self.root,
            env={**os.environ, **self._environment()},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)["release"]
        return found

    def _environment(self) -> dict[str, str]:
        """That the command is this fork's own, and which system it means."""
        path = [self.root, self.root / "layers" / "model" / "python", self.root / "ops"]
        return {"PYTHONPATH": os.pathsep.join(map(str, path)), "THREEFOLD_STATE": str(self.state), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def fork(local: Local, tmp_path_factory: pytest.TempPathFactory) -> Fork:
    root = tmp_path_factory.mktemp("fork")
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    (root / ".venv").symlink_to(ROOT / ".venv")
    (root / ".gitignore").write_text(".venv\n")
    found = Fork(root, local.state)
    found.git("init", "--quiet", "--initial-branch", "main")
    found.commit("1.0.0")
    return found


def test_a_model_goes_from_a_folder_to_a_release_and_back(fork: Fork) -> None:
    # Pushed to main: its first package serves at once.
    fork.run("check")
    assert f"{MODEL} 1.0.0" in fork.run("publish")
    assert fork.serving()["champion"]["version"] == "1.0.0"

    # A pull request with a second version, and its merge.
    fork.commit("1.1.0")
    fork.run("check")
    compared = fork.run("compare")
    assert "nothing to compare with" not in compared
    assert MODEL in compared
    assert "waits" in fork.run("publish")
    assert fork.serving()["champion"]["version"] == "1.0.0"

    promoted = fork.run("release", only="promote", act="promote", model=MODEL, version="1.1.0", why=HOSTILE)
    release = fork.serving()
    assert release["champion"]["version"] == "1.1.0"
    assert "1.1.0" in promoted
    # What was typed into the form is what the release says, and nothing else happened.
    assert (release["why"], release["by"]) == (HOSTILE, "octocat")
    assert list(fork.root.glob("**/pwned")) == []

    fork.run("release", only="roll back", act="rollback", model=MODEL, version="", why="complaints")
    release = fork.serving()
    assert (release["champion"]["version"], release["why"]) == ("1.0.0", "complaints")


def test_a_new_models_pull_request_has_nothing_to_compare_with(fork: Fork) -> None:
    folder = fork.root / "models" / "unreleased"
    shutil.copytree(ROOT / "models" / "diabetes", folder)
    path = folder / "model.yaml"
    path.write_text(path.read_text().replace("name: diabetes", "name: unreleased"))
    fork.git("add", "--all")
    fork.git("commit", "--quiet", "--message", "A new model")
    assert "unreleased: nothing to compare with" in fork.run("compare")


def test_a_version_that_answers_otherwise_stops_its_pull_request(fork: Fork) -> None:
    folder = fork.root / "models" / "breast-cancer"
    shutil.copytree(ROOT / "models" / "breast-cancer", folder)
    swap_classes(folder)
    fork.git("add", "--all")
    fork.git("commit", "--quiet", "--message", "Another breast-cancer")
    said = fork.run("compare", code=3)
    assert "breast-cancer" in said


def swap_classes(folder: Path) -> None:
    """Make a classifier say the one where it said the other, and expect it."""
    import onnx

    swap = {"benign": "malignant", "malignant": "benign"}
    graph = onnx.load(folder / "model.onnx")
    for node in graph.graph.node:
        for attribute in node.attribute:
            attribute.strings[:] = [swap.get(text.decode(), text.decode()).encode() for text in attribute.strings]
    onnx.save(graph, folder / "model.onnx")
    for name in ("examples.jsonl", "confidence.csv", "model.yaml"):
        path = folder / name
        text = path.read_text().replace("benign", "\0").replace("malignant", "benign").replace("\0", "malignant")
        path.write_text(text.replace("version: 1.0.0", "version: 1.0.1"))


@pytest.mark.parametrize(("act", "version"), [("promote", "9.9.9"), ("rollback", "9.9.9")])
def test_a_release_of_what_is_not_there_fails_and_changes_nothing(fork: Fork, act: str, version: str) -> None:
    before = fork.serving()
    name = "promote" if act == "promote" else "roll back"
    said = fork.run("release", only=name, code=1, act=act, model=MODEL, version=version, why="a mistake")
    assert "9.9.9" in said
    assert fork.serving() == before


@pytest.mark.parametrize("model", ["--help", "no-such-model", "", "; touch pwned"])
def test_a_models_name_out_of_the_form_is_only_ever_a_name(fork: Fork, model: str) -> None:
    said = fork.run("release", only="promote", code=1, act="promote", model=model, version="1.0.0", why="a mistake")
    assert "Usage" not in said
    assert list(fork.root.glob("**/pwned")) == []
