"""Groups of commands: `--json` may stand before the name of the command too, and each help ends with examples.

Every `typer.Typer` of this package is made with `cls=Group`, so that both hold at every depth.
"""

from typing import Any

from rich.markup import escape
from typer.core import TyperGroup

from agentctl.examples import EXAMPLES


class Group(TyperGroup):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, json_behind_the_name(args))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and not command.epilog:
            path = f"{ctx.command_path} {cmd_name}".partition(" ")[2]
            command.epilog = _paragraphs(EXAMPLES.get(path, ()))
        return command


def json_behind_the_name(args: list[str]) -> list[str]:
    """`--json runs` as `runs --json`. What stands behind the first name is left as it is."""
    first = next((place for place, word in enumerate(args) if not word.startswith("-")), len(args))
    if "--json" not in args[:first]:
        return args
    before = [word for word in args[:first] if word != "--json"]
    return [*before, args[first], "--json", *args[first + 1 :]] if first < len(args) else before


def _paragraphs(examples: tuple[str, ...]) -> str | None:
    """For the end of a help."""
    return "\n".join(["Examples:", *(f"  {escape(line)}" for line in examples)]) if examples else None
