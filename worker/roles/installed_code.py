"""The code of others that a worker carries out: tools, handlers and roles of installed packages, of HANDLERS_FILE and
of ROLES_DIR, with the roles that come along.

It is looked up once, where a worker starts, and handed on: what is installed later is seen by the next process. A
worker does not start with code that is wrong.
"""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from backplane.settings import Settings
from worker.handlers.registry import GROUP as HANDLERS
from worker.handlers.registry import HandlerRegistry, installed_handlers
from worker.roles.registry import GROUP as ROLES
from worker.roles.registry import RoleRegistry, installed_roles
from worker.tools.plugins import GROUP as TOOLS
from worker.tools.plugins import with_plugins
from worker.tools.registry import builtin_tools


@dataclass(frozen=True, slots=True)
class InstalledCode:
    """`tools`: the entry points of plug-ins, whose tools are made with the others of the worker."""

    tools: tuple[EntryPoint, ...]
    handlers: HandlerRegistry
    roles: RoleRegistry

    @classmethod
    def of(cls, settings: Settings) -> "InstalledCode":
        """Look it up, and load it. Raises PluginRefused."""
        tools, handlers, roles = (tuple(entry_points(group=group)) for group in (TOOLS, HANDLERS, ROLES))
        with_plugins(builtin_tools(), tools)  # one that is wrong is found before anything is waited for
        return cls(
            tools, installed_handlers(settings.handlers_file, handlers), installed_roles(settings.roles_dir, roles)
        )
