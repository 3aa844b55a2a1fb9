"""An agent of LangGraph, unchanged, in a handler.

The graph is built as LangGraph's own documentation does it, and knows nothing of this platform. Its whole call is one
effect: done once, its result in the journal. What its nodes do in between is not in the journal; where one of them does
something that must not happen twice, make that an effect of the handler, behind the graph's call.

    pip install langgraph            # with the Python that runs the workers
    agentctl dev examples/handlers/langgraph_agent.py
    agentctl run --handler langgraph-agent --input '{"question": "How many primes are below 30?"}'
"""

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from pydantic import BaseModel

from worker.handlers import Run, handler


class State(TypedDict):
    question: str
    notes: list[str]
    answer: str


def research(state: State) -> dict[str, Any]:
    below = next((int(word) for word in state["question"].rstrip("?").split() if word.isdigit()), 10)
    primes = [number for number in range(2, below) if all(number % other for other in range(2, number))]
    return {"notes": [*state["notes"], f"the primes below {below} are {primes}"], "answer": str(len(primes))}


def write(state: State) -> dict[str, Any]:
    return {"answer": f"{state['answer']}, because {state['notes'][-1]}"}


def graph() -> Any:
    """The agent as its authors wrote it."""
    builder = StateGraph(State)
    builder.add_node("research", research)
    builder.add_node("write", write)
    builder.add_edge(START, "research")
    builder.add_edge("research", "write")
    builder.add_edge("write", END)
    return builder.compile()


class Question(BaseModel):
    question: str


@handler("langgraph-agent")
async def langgraph_agent(run: Run, input: Question) -> str:
    """Answers a question by a graph of LangGraph."""
    asked = {"question": input.question, "notes": [], "answer": ""}
    state = await run.step("graph", graph().ainvoke, asked).options(repeatable=True)
    return str(state["answer"])
