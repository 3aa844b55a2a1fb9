"""A role whose process has the model in itself, and one that asks a server beside it, for `bench.local_model`.

The model is loaded by the first turn of a process, and asked in a thread, as any function that takes long.
"""

from functools import cache
from importlib import import_module
from typing import Any

from tests.model_server import SMALL_CONTEXT, file_of_small_model
from worker.roles import Agent, Message, Role

TOKENS = 32
"""Of an answer at most."""


@cache
def model() -> Any:
    llama: Any = import_module("xllamacpp")
    parameters = llama.CommonParams()
    parameters.model.path = str(file_of_small_model())
    for name, value in {"n_ctx": SMALL_CONTEXT, "n_parallel": 4, "kv_unified": True, "warmup": False}.items():
        setattr(parameters, name, value)
    for processors in (parameters.cpuparams, parameters.cpuparams_batch):
        processors.n_threads = 1
    return llama.Server(parameters)


def answer(text: str) -> str:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "temperature": 0}
    return str(model().handle_chat_completions(asked)["choices"][0]["message"]["content"])


class Thinking(Role):
    async def on_message(self, message: Message, agent: Agent) -> str:
        return "1" if message.text == "count" else str(await agent.step("think", answer, message.text))


class Asking(Role):
    async def on_message(self, message: Message, agent: Agent) -> str:
        return "1" if message.text == "count" else await agent.model(message.text)
