"""Groups of commands: `--json` may stand before the name of the command too, an option that takes one value is refused
when it is given twice (else the last one would win in silence), and each help ends with examples.

Every `typer.Typer` of this package is made with `cls=Group`, so that all of it holds at every depth.
"""

from collections import Counter
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

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        # While a shell completes a line, nothing is wrong with it yet. A group has nothing but flags.
        if command is not None and not isinstance(command, TyperGroup) and not ctx.resilient_parsing:
            refuse_second_values(command, ctx.__class__(command, parent=ctx, info_name=name), rest)
        return name, command, rest


class CallableGroup(Group):
    """A group that is a command too: where no command of its own is named, all options are the group's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if any(word in self.commands for word in args):
            return super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            refuse_second_values(self, ctx, args)
        return TyperGroup.parse_args(self, ctx, args)


def refuse_second_values(command: Any, ctx: Any, args: list[str]) -> None:
    """Raises the usage error of the command line's library. A flag may stand twice, for it says the same again."""
    _, _, given = command.make_parser(ctx).parse_args(args=list(args))
    for option, times in Counter(given).items():
        takes_one = option.param_type_name == "option" and not (option.is_flag or option.multiple or option.count)
        if takes_one and times > 1:
            ctx.fail(f"{max(option.opts, key=len)} is given twice; keep one.")


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
