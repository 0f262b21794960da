"""What an lm-eval task's YAML would read and run, found out without loading it.

lm-eval resolves `!function` while it loads a file, so a file must be judged before the harness sees it. Files are
parsed to nodes, which constructs nothing; comments, quoting and escaped tags are the parser's business, not a regular
expression's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

from quantize.errors import DataError

__all__ = ["forbid_code", "read_files"]

_PLAIN = "tag:yaml.org,2002:"
_PYTHON = "tag:yaml.org,2002:python/"
#: How a task names a function of a module beside it.
_FUNCTION = "!function"


def forbid_code(paths: list[Path], allowed: Collection[str] = ()) -> None:
    """Refuse YAML that runs code, in the files or what they include; but for the functions that are `allowed` by name.

    That is `!function`, any other tag that is not YAML's own, and `hf_evaluate`, which fetches a metric and runs it.
    """
    for file, root in _closure(paths):
        for node in _nodes(root):
            tagged = not node.tag.startswith(_PLAIN) or node.tag.startswith(_PYTHON)
            called = node.tag == _FUNCTION and isinstance(node.value, str)
            if called and node.value in allowed:
                continue
            if tagged or node.value == "hf_evaluate":
                by_name = f", or name it alone: `allow_code: [{node.value}]`" if called else ""
                raise DataError(
                    f"`{node.tag if tagged else node.value}` runs code.",
                    where=f"{file}:{node.start_mark.line + 1}",
                    fix=f"If you trust it, set `allow_code: true` for this eval{by_name}.",
                )


def read_files(paths: list[Path]) -> list[Path]:
    """The files, what they include, and the local data and code that they name; sorted, each once."""
    found = set()
    for file, root in _closure(paths):
        found.add(file)
        names = [node.value for node in _nodes(root) if node.tag == _FUNCTION and isinstance(node.value, str)]
        modules = {file.parent / f"{name.rpartition('.')[0]}.py" for name in names}
        found |= {module.resolve() for module in modules if module.is_file()}
        found |= {data for text in _values(root, "data_files") if (data := Path(text).resolve()).is_file()}
    return sorted(found)


def _closure(paths: list[Path]) -> Iterator[tuple[Path, yaml.Node]]:
    """Each file and each that it includes, with its root node. Includes that are missing are left to the harness."""
    queue, seen = [path.resolve() for path in paths], set()
    while queue:
        file = queue.pop(0)
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        try:
            root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else str(file)
            raise DataError(f"this is not YAML ({getattr(error, 'problem', error)}).", where=where) from None
        if root is not None:
            yield file, root
            queue += [(file.parent / text).resolve() for text in _values(root, "include")]


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once; anchors may make a ring."""
    queue, seen = [root], set()
    while queue:
        node = queue.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            queue += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            queue += node.value


def _values(root: yaml.Node, key: str) -> Iterator[str]:
    """All scalars under `key`, in whichever mapping it stands: merge keys may lift a nested one to the top."""
    for node in _nodes(root):
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key:
                    yield from (part.value for part in _nodes(value) if isinstance(part, yaml.ScalarNode))
