"""The names of Redis keys; what each is for is declared in `declared_keys`.

All keys of one platform begin with one prefix (REDIS_KEY_PREFIX, empty by default). On a Redis Cluster it holds a hash
tag, so that all of them lie in one slot and every script touches one node only.
"""

from backplane.domain.runs import DEFAULT_QUEUE, Priority

_PENDING = {
    Priority.CRITICAL: "jobs:pending:critical",
    Priority.HIGH: "jobs:pending:high",
    Priority.NORMAL: "jobs:pending",
    Priority.LOW: "jobs:pending:low",
}


class Keys:
    """The names under one prefix. The queue's scripts make theirs from `jobs` in the same way."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.jobs = f"{prefix}jobs:"
        self.pending = {priority: prefix + name for priority, name in _PENDING.items()}
        """Highest priority first."""
        self.order = f"{self.jobs}order"
        self.parked = f"{self.jobs}parked"
        self.gates = f"{self.jobs}gates"
        self.leases = f"{self.jobs}leases"
        self.scheduled = f"{self.jobs}scheduled"
        self.wake_ups = f"{self.jobs}doorbell"
        self.durations = f"{self.jobs}durations"
        self.finished = f"{self.jobs}finished"
        self.dead = f"{self.jobs}dead"
        self.workers = f"{self.jobs}workers"
        self.serving = f"{self.jobs}serving"
        self.queues = f"{self.jobs}queues"
        self.leader = f"{self.jobs}leader"
        self.cancels = f"{self.jobs}cancels"
        self.platform = f"{self.jobs}platform"
        self.models = f"{prefix}models:"
        self.tools = f"{prefix}tools:published"
        self.tool_publishers = f"{prefix}tools:publishers"
        self.storage_users = f"{prefix}storage:known:users"
        self.probe = f"{prefix}health:probe"

    def job(self, run_id: str) -> str:
        return f"{self.jobs}{run_id}"

    def wake_ups_of(self, worker_id: str) -> str:
        return f"{self.wake_ups}:{worker_id}"

    def wake_ups_in(self, queue: str) -> str:
        return f"{self._of_queue(queue)}doorbell"

    def admitted(self, priority: Priority, queue: str = DEFAULT_QUEUE) -> str:
        return f"{self._of_queue(queue)}admitted:{int(priority)}"

    def _of_queue(self, queue: str) -> str:
        return self.jobs if queue == DEFAULT_QUEUE else f"{self.jobs}queue:{queue}:"

    def admitted_of(self, user_id: str) -> str:
        return f"{self.jobs}admitted:user:{user_id}"

    def stream(self, run_id: str) -> str:
        return f"{self.prefix}agent:events:{run_id}"

    def channel(self, run_id: str) -> str:
        return f"{self.prefix}agent:logs:{run_id}"

    def user_channel(self, user_id: str) -> str:
        return f"{self.prefix}agent:user:{user_id}"

    def bus_user_channel(self, user_id: str) -> str:
        return f"{self.prefix}agent:bus:{user_id}"

    def bus_type_channel(self, type: str) -> str:
        return f"{self.prefix}events:{type}"

    def agent(self, agent_id: str) -> str:
        return f"{self.prefix}agent:{agent_id}"

    def agent_process(self, process_id: str) -> str:
        return f"{self.prefix}process:{process_id}"

    def pool_agents(self, pool: str) -> str:
        return f"{self.prefix}pool:{pool}:agents"

    def pool_processes(self, pool: str) -> str:
        return f"{self.prefix}pool:{pool}:processes"

    def pool_commands(self, pool: str) -> str:
        return f"{self.prefix}pool:{pool}:commands"

    def rate(self, name: str) -> str:
        return f"{self.prefix}rates:{name}"

    def storage(self, user_id: str) -> str:
        return f"{self.prefix}storage:{user_id}"

    def uploads(self, run_id: str) -> str:
        return f"{self.prefix}storage:uploads:{run_id}"

    def tool_set(self, digest: str) -> str:
        return f"{self.prefix}tools:set:{digest}"

    def model_server(self, server: str) -> str:
        return f"{self.models}server:{server}"

    def model_wake_ups(self, worker: str) -> str:
        return f"{self.models}bell:{worker}"

    def model_waits(self, run_id: str) -> str:
        return f"{self.models}waits:{run_id}"

    def model_tokens(self, bucket: str) -> str:
        return f"{self.models}tokens:{bucket}"

    def counting(self, what: str) -> str:
        return f"{self.prefix}controller:counting:{what}"

    @property
    def pool_shortages(self) -> str:
        return f"{self.prefix}pools:shortages"

    @property
    def managing(self) -> str:
        return f"{self.prefix}controller:pools"

    def services(self, what: str) -> str:
        return f"{self.prefix}controller:services:{what}"

    @property
    def deployments(self) -> str:
        return f"{self.prefix}controller:deployments"

    @property
    def gpu_machines(self) -> str:
        return f"{self.prefix}controller:gpus"

    @property
    def background_queue(self) -> str:
        """Not a key, but the name by which RQ makes its keys, which begin with `rq:` whatever the prefix is."""
        return f"{self.prefix}background-jobs"
