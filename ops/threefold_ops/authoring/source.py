"""A YAML file's values, and the line that each of them stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from threefold.gate import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Location = tuple[int | str, ...]

# A thousand features have some ten thousand.
MAXIMUM_NODES: Final = 1_000_000
_NOTHING: Final = object()


class Unreadable(Exception):
    """A file that is no YAML at all, with the finding that says so."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass(frozen=True, slots=True)
class Source:
    """A YAML file as it was read.

    Attributes:
        document: its values.
        repeated: keys that stand in one mapping twice; of the values, the last is in the document.
    """

    document: Any
    repeated: list[Finding]
    _root: yaml.Node | None

    def line(self, location: Sequence[int | str]) -> int | None:
        """The line of a key or an entry, or of the deepest part of its location that is there; None without any."""
        node, line = self._root, None
        for step in location:
            found = None if node is None else _step(node, step)
            if found is None:
                break
            mark, node = found
            line = mark.line + 1
        return line

    def present(self, location: Location) -> Location:
        """As much of a location as the document has."""
        value, found = self.document, 0
        for step in location:
            if isinstance(value, dict):
                value = value.get(step, _NOTHING)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                break
            if value is _NOTHING:
                break
            found += 1
        return location[:found]


def read_source(path: Path) -> Source:
    """Read a YAML file.

    Raises:
        Unreadable: it cannot be read, is not UTF-8, or is no YAML.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        _check_size(path.name, root)
        # Before the values are made: that writes what a merge (<<) brings into the nodes, where it is no repetition.
        repeated = list(_repeated(path.name, root))
        document = None if root is None else loader.construct_document(root)
    except OSError as error:
        message = f"want a readable file, got: {error.strerror}"
        raise Unreadable(Finding(path.name, message)) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        message = f"want UTF-8, got byte 0x{error.object[error.start]:02x}"
        raise Unreadable(Finding(path.name, message, line)) from error
    except yaml.YAMLError as error:
        raise Unreadable(_unreadable(path.name, error)) from error
    # What the constructors of dates, numbers and deep nesting raise by themselves.
    except (ValueError, OverflowError, RecursionError) as error:
        raise Unreadable(Finding(path.name, f"want YAML, got: {error}")) from error
    return Source(document, repeated, root)


def _check_size(name: str, root: yaml.Node | None) -> None:
    """Refuse a document that aliases make larger than any that a person writes: nine lines can stand for all memory."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 0  # what holds itself is refused for that, by who asks for JSON
            parts = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
            nodes = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, nodes))
        return sizes[id(node)]

    if root is not None and (found := size(root)) > MAXIMUM_NODES:
        message = f"want at most {MAXIMUM_NODES} values, got {found:,} where the aliases are written out"
        raise Unreadable(Finding(name, message))


def _unreadable(name: str, error: yaml.YAMLError) -> Finding:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    column = "" if mark is None else f" (column {mark.column + 1})"
    return Finding(name, f"want YAML, got: {said}{column}", None if mark is None else mark.line + 1)


def _step(node: yaml.Node, step: int | str) -> tuple[yaml.Mark, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        # The last of several keys: its value is the one in the document.
        found = [(key.start_mark, value) for key, value in node.value if key.value == str(step)]
        return found[-1] if found else None
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark, node.value[step]
    return None


def _repeated(name: str, root: yaml.Node | None) -> Iterator[Finding]:
    """Keys that YAML itself would pass over, with the line of the later one."""
    # By identity: an alias is its anchor's node, and may even stand within it.
    seen: set[int] = set()
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (first := lines.get((key.tag, key.value))) is not None:
                yield Finding(name, f"{key.value}: want a key once, got it again (first in line {first})", line)
            lines[key.tag, key.value] = line
