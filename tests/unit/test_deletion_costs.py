"""Which pods' costs are written: those whose worker has another number of running runs by now."""

from backplane.queue.base import LiveWorker
from controller.deletion_cost import costs


def worker(pod: str, running: int, pid: int = 1) -> LiveWorker:
    return LiveWorker(f"{pod}-{pid}-abc123", slots=10, running=running)


def test_a_pod_costs_as_much_as_its_worker_has_running_runs() -> None:
    workers = [worker("agent-worker-5d8-x1", 3), worker("agent-worker-5d8-x2", 0)]
    pods = {"agent-worker-5d8-x1": None, "agent-worker-5d8-x2": "4"}
    assert costs(workers, pods) == {"agent-worker-5d8-x1": "3", "agent-worker-5d8-x2": "0"}


def test_what_is_written_already_is_not_written_again() -> None:
    assert costs([worker("a", 3), worker("b", 0)], {"a": "3", "b": None}) == {}


def test_several_workers_in_a_pod_count_together() -> None:
    assert costs([worker("a", 3, pid=1), worker("a", 2, pid=2)], {"a": None}) == {"a": "5"}


def test_a_pod_whose_worker_is_gone_costs_nothing() -> None:
    assert costs([], {"a": "2"}) == {"a": "0"}


def test_workers_elsewhere_are_no_matter() -> None:
    assert costs([worker("my-laptop", 3)], {"a": None}) == {}
