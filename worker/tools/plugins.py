"""Tools of other packages: each installed package may offer some under the entry point group `agent_platform.tools`.

An entry point names a class of tool, which is made without arguments, or anything that gives tools when it is called.
They are loaded once, where a worker starts, and a worker does not start with one that is wrong: a tool that is silently
missing would show in the middle of somebody's run. They are trusted like the platform itself, for they run in the
worker's process; what guards against them is who may install packages there. docs/writing-a-tool.md has an example.
"""

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

from backplane.errors import Refused
from worker.tools.base import Risk, Tool, ToolArguments
from worker.tools.registry import ToolRegistry

GROUP = "agent_platform.tools"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class PluginRefused(Refused):
    """A worker cannot start with this plug-in. The message names the package, what is wrong, and what to do."""

    code: ClassVar[str] = "plugin_refused"


def with_plugins(registry: ToolRegistry, found: Iterable[EntryPoint]) -> ToolRegistry:
    """The registry with the tools of these entry points. Raises PluginRefused."""
    for entry_point in sorted(found, key=lambda one: (package_of(one), one.name)):
        for tool in _tools(entry_point):
            # Also of a tool that is frozen.
            object.__setattr__(tool, "package", package_of(entry_point))
            if registry.get(tool.name) is not None:
                raise _refused(entry_point, f"there is a tool named {tool.name!r} already; give it another name")
            registry = registry.with_tools([tool])
    return registry


def _tools(entry_point: EntryPoint) -> list[Tool]:
    try:
        loaded = entry_point.load()
        made = loaded()
    except (Exception, SystemExit) as error:
        raise _refused(entry_point, f"it cannot be loaded ({type(error).__name__}: {error})") from error
    tools = list(made) if isinstance(made, Iterable) else [made]
    for tool in tools:
        if not isinstance(tool, Tool):
            raise _refused(entry_point, f"it gives a {type(tool).__name__}, not a worker.tools.base.Tool")
        if fault := _fault(tool):
            raise _refused(entry_point, fault)
    return tools


def _fault(tool: Tool) -> str:
    """What is wrong with a tool, by what a run relies on; empty when nothing is."""
    what: dict[str, Any] = {name: getattr(tool, name, None) for name in ("name", "description", "arguments", "risk")}
    if not isinstance(what["name"], str) or not _NAME.fullmatch(what["name"]):
        return f"its name {what['name']!r} is not of the form [a-z][a-z0-9_]*, at most 64 characters"
    if not isinstance(what["description"], str) or not what["description"].strip():
        return f"the tool {tool.name} has no description, by which models and people choose it"
    if not (isinstance(what["arguments"], type) and issubclass(what["arguments"], ToolArguments)):
        return f"the arguments of the tool {tool.name} are no subclass of worker.tools.base.ToolArguments"
    if not isinstance(what["risk"], Risk):
        return f"the risk of the tool {tool.name} is no worker.tools.base.Risk"
    if tool.changes_outside not in (None, True, False):
        return f"changes_outside of the tool {tool.name} is neither True nor False"
    return ""


def package_of(entry_point: EntryPoint) -> str:
    """The installed package that it is of, with its version."""
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "an unknown package"


def _refused(entry_point: EntryPoint, reason: str) -> PluginRefused:
    return PluginRefused(
        f"the plug-in {entry_point.name} = {entry_point.value} of {package_of(entry_point)} cannot be used: {reason}. "
        "Mend or uninstall that package; the worker does not start with it."
    )
