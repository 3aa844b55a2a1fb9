"""The commands about models: what fits on a GPU."""

from typing import Annotated

import typer

from agentctl.exit_codes import CommandError, ExitCode
from agentctl.groups import Group
from agentctl.sizing.model_memory import GB, SHAPES, ModelShape, fit, shape_of
from agentctl.terminal.output import JsonFlag, Output

app = typer.Typer(cls=Group, help="What fits on a GPU.", no_args_is_help=True)

SETTINGS = "OLLAMA_NUM_PARALLEL={calls}  OLLAMA_MAX_LOADED_MODELS={loaded}"


@app.callback()
def models() -> None:
    """Model servers."""


@app.command("fit")
def models_fit(
    model: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="qwen2.5:7b, or a size such as 7b. All known ones.")
    ] = None,
    gpu_gb: Annotated[float, typer.Option(min=0.1, help="Memory of the GPU, in GB (10⁹ bytes).")] = 16.0,
    calls: Annotated[int, typer.Option(min=1, help="Calls at once a loaded model: OLLAMA_NUM_PARALLEL.")] = 4,
    context: Annotated[int, typer.Option(min=1, help="Tokens of each call, prompt and answer.")] = 4096,
    bits: Annotated[float, typer.Option(min=1, max=32, help="Bits a weight: 4.85 Q4_K_M, 8.5 Q8_0, 16 F16.")] = 4.85,
    cache_bytes: Annotated[float, typer.Option(min=0.25, max=4, help="Bytes a cached number: 2 f16, 1 q8_0.")] = 2.0,
    parameters: Annotated[
        float | None, typer.Option(min=0.001, help="For a model that is not known: its parameters, in billions.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Its layers (num_hidden_layers).")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Its key-value heads (num_key_value_heads).")] = None,
    head_size: Annotated[int, typer.Option(min=1, help="Its head_dim.")] = 128,
    json_output: JsonFlag = False,
) -> None:
    """Tell how many models, and calls of one, fit into a GPU's memory: an estimate, to choose settings by."""
    output = Output(json_output)
    shapes = _shapes(model or [], parameters, layers, kv_heads, head_size)
    rows = []
    for shape in shapes:
        found = fit(shape, round(gpu_gb * GB), calls=calls, context=context, bits=bits, cache_bytes=cache_bytes)
        rows.append(
            {
                "model": shape.name,
                "weights_gb": round(found.weights / GB, 2),
                "cache_gb_per_call": round(found.cache_per_call / GB, 3),
                "total_gb": round(found.total / GB, 2),
                "models_at_once": found.loaded,
                "calls_at_once": found.parallel,
            }
        )
    if output.json:
        output.document(rows)
        return
    output.table(
        ["MODEL", "WEIGHTS GB", "CACHE GB A CALL", f"GB WITH {calls} CALLS", "MODELS AT ONCE", "CALLS OF ONE AT ONCE"],
        [[str(value) for value in row.values()] for row in rows],
    )
    if len(rows) == 1 and rows[0]["models_at_once"]:
        output.note(SETTINGS.format(calls=calls, loaded=rows[0]["models_at_once"]))


def _shapes(
    names: list[str], parameters: float | None, layers: int | None, kv_heads: int | None, head_size: int
) -> list[ModelShape]:
    own = (parameters, layers, kv_heads)
    if any(own) and names:
        raise CommandError(ExitCode.USAGE, "Give names of models, or the numbers of one, not both.")
    if parameters and layers and kv_heads:
        return [ModelShape("this one", parameters, layers, kv_heads, head_size)]
    if any(own):
        raise CommandError(ExitCode.USAGE, "A model of your own needs --parameters, --layers and --kv-heads.")
    found = {name: shape_of(name) for name in names}
    if unknown := [name for name, shape in found.items() if shape is None]:
        known = ", ".join(shape.name for shape in SHAPES)
        raise CommandError(
            ExitCode.USAGE,
            f"{unknown[0]} is not known here; known are {known}. Give --parameters, --layers and --kv-heads instead.",
        )
    return [shape for shape in found.values() if shape] or list(SHAPES)
