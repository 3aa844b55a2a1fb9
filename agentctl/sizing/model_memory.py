"""What fits on a GPU: the memory of models that a server such as Ollama keeps loaded. Pure.

Three parts add up (a fourth, activations, is small beside them and is in the overhead):

    weights    parameters × bits each; 4-bit formats take about 4.85 bits with their scales (Q4_K_M)
    cache      2 × layers × key-value heads × head size × context × bytes, for each call at once: keys and values of
               every token (Vaswani et al. 2017; the heads are shared since Ainslie et al. 2023, arXiv:2305.13245)
    overhead   what the runtime takes for itself, once a loaded model

The shapes are those of the `config.json` that the makers publish with each model. The result is an estimate: it says
what to try first, and `ollama ps` says what it came to.
"""

from dataclasses import dataclass

GB = 10**9
OVERHEAD_BYTES = int(0.4 * GB)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """`parameters` in billions (10⁹)."""

    name: str
    parameters: float
    layers: int
    key_value_heads: int
    head_size: int


SHAPES = (
    ModelShape("qwen2.5:0.5b", 0.494, 24, 2, 64),
    ModelShape("llama3.2:1b", 1.236, 16, 8, 64),
    ModelShape("qwen2.5:3b", 3.086, 36, 2, 128),
    ModelShape("llama3.2:3b", 3.213, 28, 8, 128),
    ModelShape("qwen2.5:7b", 7.616, 28, 4, 128),
    ModelShape("mistral:7b", 7.248, 32, 8, 128),
    ModelShape("llama3.1:8b", 8.030, 32, 8, 128),
    ModelShape("qwen2.5:14b", 14.770, 48, 8, 128),
    ModelShape("qwen2.5:32b", 32.764, 64, 8, 128),
    ModelShape("llama3.3:70b", 70.554, 80, 8, 128),
)


@dataclass(frozen=True, slots=True)
class Fit:
    """All in bytes. `loaded`: how many such models fit at once, each with all its calls; 0: not even one.
    `parallel`: how many calls at once one loaded model can serve in all that memory."""

    weights: int
    cache_per_call: int
    total: int
    loaded: int
    parallel: int


def fit(shape: ModelShape, gpu_bytes: int, *, calls: int, context: int, bits: float, cache_bytes: float = 2.0) -> Fit:
    """`calls` at once a loaded model, each of `context` tokens; `cache_bytes` a number: 2 is f16, 1 is q8_0."""
    weights = round(shape.parameters * GB * bits / 8)
    per_call = round(2 * shape.layers * shape.key_value_heads * shape.head_size * context * cache_bytes)
    total = weights + calls * per_call + OVERHEAD_BYTES
    left = gpu_bytes - weights - OVERHEAD_BYTES
    return Fit(weights, per_call, total, gpu_bytes // total, max(left // per_call, 0))


def shape_of(name: str) -> ModelShape | None:
    """By its name, or by its size alone (`7b`: the first of that size)."""
    wanted = name.lower()
    return next((shape for shape in SHAPES if wanted in (shape.name, shape.name.partition(":")[2])), None)
