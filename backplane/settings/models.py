"""Model servers, what calls of them may take, and the planner and agents that call them: read by workers."""

from typing import Any

from pydantic import Field, SecretStr

from backplane.domain.sizes import MIB


class ModelSettings:
    model: str = Field("", description="Default model, SERVER/NAME: ollama/qwen2.5:7b, openai/…; empty: no model.")
    model_fallbacks: list[str] = Field(
        default_factory=list,
        description="Models that are tried in this order when MODEL cannot answer a call that names no model of its "
        'own, as JSON: ["…"].',
    )
    model_servers: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description='Further servers by name, as JSON: {"gpu": {"kind": "openai", "url": "http://10.0.0.10:8000/v1", '
        '"slots": 8, "api_key_env": "GPU_KEY"}}; kinds: ollama, openai, anthropic.',
    )
    ollama_host: str = Field("", description="URL of the Ollama server; makes the server `ollama`.")
    ollama_num_parallel: int = Field(4, ge=1, le=1000, description="Calls that Ollama gets at once, of all workers.")
    ollama_max_loaded_models: int = Field(2, ge=1, le=100, description="Models that Ollama is asked for at once.")
    ollama_keep_alive: str = Field("5m", description="How long Ollama keeps a model loaded after a call.")
    openai_base_url: str = Field("https://api.openai.com/v1", description="URL of the server `openai`.")
    openai_api_key: SecretStr = Field(SecretStr(""), description="Its key; makes the server `openai`.")
    anthropic_base_url: str = Field("https://api.anthropic.com", description="URL of the server `anthropic`.")
    anthropic_api_key: SecretStr = Field(SecretStr(""), description="Its key; makes the server `anthropic`.")
    model_timeout_seconds: float = Field(300.0, gt=0, description="Limit of one call of a model, its waiting left out.")
    model_silence_seconds: float = Field(120.0, gt=0, description="A server that is silent for so long is given up.")
    model_retries: int = Field(
        3, ge=0, le=20, description="Further tries of a call at the same server, where one may help."
    )
    model_max_output_tokens: int = Field(2048, ge=1, description="Most tokens of an answer, where a call names none.")
    model_max_input_bytes: int = Field(1 * MIB, ge=1, description="Longest prompt of a call, in bytes.")
    model_prices: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description='Dollars for a million tokens, as JSON: {"openai/NAME": {"input": 1.25, "output": 10}}.',
    )
    embedding_model: str = Field("", description="Model for embeddings, SERVER/NAME; empty: the built-in one.")
    agent_tokens_per_second: float | None = Field(
        None,
        ge=0,
        description="Generated tokens a second of an agent, at every model server; 0: any. Unset: 10 at servers that "
        "are local (on a loopback address, or declared so), any number at others.",
    )
    agent_tokens_burst: float = Field(
        100.0, gt=0, description="Generated tokens that it may have at once, after a pause."
    )
    user_tokens_per_second: float | None = Field(None, ge=0, description="The same of all agents of a user.")
    user_tokens_burst: float = Field(100.0, gt=0, description="The same of all agents of a user.")
    plan_repairs: int = Field(2, ge=0, le=10, description="How often a model may mend a plan that is not valid.")
    plan_replans: int = Field(
        2, ge=0, le=20, description="How often a model may replan the rest of a run after a failure."
    )
    agent_max_turns: int = Field(20, ge=1, le=1000, description="Most turns of an agent's step, and its default.")
    agent_max_tokens: int = Field(100_000, ge=1, description="Most model tokens of an agent's step, and its default.")
    agent_max_usd: float = Field(1.0, ge=0, description="Most dollars of an agent's step, and its default.")
    agent_max_seconds: float = Field(1800.0, gt=0, description="Most seconds of an agent's step, and its default.")
