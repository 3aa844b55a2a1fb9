"""The commands that only print: settings, version."""

from agentctl.local.configuration import load_settings, masked
from agentctl.terminal.output import JsonFlag, Output
from backplane import VERSION
from backplane.settings import Settings


def settings(json_output: JsonFlag = False) -> None:
    """List every setting: its name in the environment, value, default and meaning. Secrets are not shown."""
    output, current = Output(json_output), load_settings()
    listing = [
        {
            "name": name.upper(),
            "value": masked(getattr(current, name)),
            "default": masked(field.get_default(call_default_factory=True)),
            "set": name in current.model_fields_set,
            "meaning": field.description or "",
        }
        for name, field in Settings.model_fields.items()
    ]
    if output.json:
        output.document(listing)
        return
    rows = [
        [str(setting["name"]), str(setting["value"]), str(setting["default"]), str(setting["meaning"])]
        for setting in listing
    ]
    output.table(["NAME", "VALUE", "DEFAULT", "MEANING"], rows, folding=["VALUE", "DEFAULT", "MEANING"])


def show_version(json_output: JsonFlag = False) -> None:
    """Show the version of this program."""
    output = Output(json_output)
    output.document({"version": VERSION}) if output.json else output.line(VERSION)
