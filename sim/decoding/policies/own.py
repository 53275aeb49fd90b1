"""A policy of one's own: a class in any module, which goes by `module.Class` where a listed policy has its name.

    my_policies:EveryOther(draft_length=4)      # as a user types it for the command line
    my_policies.EveryOther:draft_length=4       # its label, in files and tables

To read a label runs no code: only modules that are loaded already are looked at. `import_own` loads one, and is called for
what a user typed, never for what a file says.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

QUESTIONS = (
    "needs",
    "overlaps",
    "looks",
    "draft_more",
    "keep",
    "hedge",
    "learn",
)  # of `sim.decoding.policies.base.Policy`
MAIN = "__main__"
_MODULES: set[str] = set()  # that such policies came from, in this process
_MODULE = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_TYPED = re.compile(rf"(?P<module>{_MODULE}):(?P<name>[^\W\d]\w*)(?:\((?P<settings>[^()]*)\))?")
_NAME = re.compile(rf"(?P<module>{_MODULE})\.(?P<name>[^\W\d]\w*)")


class OwnPolicyError(ValueError):
    """A policy of one's own that cannot be found or used; the message says what to change."""


def canonical(label: str) -> str:
    """The label of what a user typed; other labels stay as they are.

    >>> canonical("my_policies:EveryOther(draft_length=4)"), canonical("pearl:draft_length=4")
    ('my_policies.EveryOther:draft_length=4', 'pearl:draft_length=4')
    """
    if (typed := _TYPED.fullmatch(label.strip())) is None:
        return label
    name = f"{typed['module']}.{typed['name']}"
    return f"{name}:{typed['settings']}" if typed["settings"] else name


def is_own(name: str) -> bool:
    """Whether a policy's name is that of a class in a module.

    >>> is_own("my_policies.EveryOther"), is_own("pearl")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def import_own(label: str) -> str:
    """The canonical label, after its module was imported: from where Python finds it, and at last from the working folder.

    Raises OwnPolicyError where there is no such module or class, or the class answers no policy's questions.
    """
    label = canonical(label)
    name = label.partition(":")[0]
    if (parts := _NAME.fullmatch(name)) is None:
        return label
    if _main_class(parts["module"], parts["name"]) is None:
        with _working_folder_last():
            try:
                importlib.import_module(parts["module"])
            except ModuleNotFoundError as error:
                raise OwnPolicyError(
                    f"policy {name}: cannot import {parts['module']} ({error}); run the command in the folder of "
                    f"{parts['module'].replace('.', '/')}.py, or install it."
                ) from error
            except Exception as error:  # whatever the user's code raises
                last = traceback.extract_tb(error.__traceback__)[-1]
                raise OwnPolicyError(
                    f"policy {name}: cannot import {parts['module']}: {type(error).__name__}: {error} ({last.filename}, line "
                    f"{last.lineno}); mend the file."
                ) from error
    class_of(name)
    return label


def class_of(name: str) -> type[Any]:
    """The class behind `module.Class`, if its module is loaded. Raises OwnPolicyError."""
    parts = _NAME.fullmatch(name)
    assert parts is not None, f"{name} names no class"
    if (kind := _main_class(parts["module"], parts["name"])) is None:
        module = sys.modules.get(parts["module"])
        if module is None:
            raise OwnPolicyError(
                f"policy {name}: the module {parts['module']} is not loaded; a script imports it, and the command line does "
                f"so for --policy {parts['module']}:{parts['name']}."
            )
        kind = getattr(module, parts["name"], None)
        if not isinstance(kind, type):
            where = getattr(module, "__file__", None) or "built in"
            raise OwnPolicyError(f"policy {name}: {parts['module']} ({where}) has no class {parts['name']}.")
    missing = [question for question in QUESTIONS if not hasattr(kind, question)]
    settings: Any = vars(kind).get("__dataclass_params__")
    if missing or settings is None or not settings.frozen:
        raise OwnPolicyError(
            f"policy {name} must be a frozen dataclass that answers {', '.join(missing) or 'all questions'}; write "
            "@dataclass(frozen=True) above it and derive it from sim.decoding.policies.base.Defaults."
        )
    _MODULES.add(kind.__module__)
    return kind


def name_of(kind: type[Any]) -> str:
    """`module.Class`, which `class_of` reads back. Raises OwnPolicyError for a class that it could not find again."""
    name = f"{_main_name() if kind.__module__ == MAIN else kind.__module__}.{kind.__qualname__}"
    if "<locals>" in name or not is_own(name) or class_of(name) is not kind:
        raise OwnPolicyError(
            f"{kind.__qualname__} is not listed in sim.decoding.policies.catalog and cannot be found by its name; define it "
            "at the top of a module."
        )
    return name


def own_modules() -> list[ModuleType]:
    """The modules that policies of one's own came from so far: other processes may not find them by name."""
    return [sys.modules[name] for name in sorted(_MODULES) if name in sys.modules]


def _main_name() -> str:
    """How others import the script that runs; its own name where it is no file, as in a notebook."""
    file = getattr(sys.modules.get(MAIN), "__file__", None)
    return Path(file).stem if file else MAIN


def _main_class(module: str, name: str) -> type[Any] | None:
    """A class of the script that runs, which must not be loaded once more under the script's own name."""
    kind = getattr(sys.modules.get(MAIN), name, None) if module == _main_name() else None
    return kind if isinstance(kind, type) and kind.__module__ == MAIN else None


@contextmanager
def _working_folder_last() -> Iterator[None]:
    """What is installed, ours included, keeps its name even where the user's folder has a file of that name."""
    folder = str(Path.cwd())
    is_added = folder not in sys.path
    if is_added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if is_added:
            sys.path.remove(folder)
