"""Every Redis key, and who writes and reads it.

Redis may be emptied at any moment: nothing here is the only copy of anything. A key either has a lifetime or is
declared permanent, which means that its size is bounded by the runs that are under way. `docs/internals.md` shows
this table, and `make check` holds the two against each other.

All keys of one platform begin with one prefix (REDIS_KEY_PREFIX, empty by default). On a Redis Cluster it holds a hash
tag, so that all of them lie in one slot and every script touches one node only.
"""

from dataclasses import dataclass

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

    def model_wake_ups(self, worker: str) -> str:
        return f"{self.models}bell:{worker}"

    def model_waits(self, run_id: str) -> str:
        return f"{self.models}waits:{run_id}"

    def model_tokens(self, bucket: str) -> str:
        return f"{self.models}tokens:{bucket}"

    def counting(self, what: str) -> str:
        return f"{self.prefix}controller:counting:{what}"

    @property
    def managing(self) -> str:
        return f"{self.prefix}controller:pools"

    @property
    def background_queue(self) -> str:
        """Not a key, but the name by which RQ makes its keys, which begin with `rq:` whatever the prefix is."""
        return f"{self.prefix}background-jobs"


@dataclass(frozen=True, slots=True)
class Key:
    pattern: str
    type: str
    lifetime: str
    writer: str
    reader: str
    purpose: str


KEYS: tuple[Key, ...] = (
    Key(
        "jobs:pending",
        "list",
        "permanent",
        "API, worker",
        "operators, autoscalers",
        "runs of normal priority that may be taken; pushed left, taken right",
    ),
    Key("jobs:pending:{priority}", "list", "permanent", "API, worker", "the same", "those of critical, high and low"),
    Key(
        "jobs:order",
        "sorted set",
        "permanent",
        "API, worker",
        "worker, API",
        "the runs of all four lists in the order in which they are taken: by time and priority, with ageing",
    ),
    Key("jobs:parked", "sorted set", "permanent", "API, worker", "API", "runs that a cap holds back, by priority"),
    Key("jobs:parked:{gate}", "sorted set", "permanent", "API, worker", "worker", "those of one cap, in order"),
    Key("jobs:gates", "set", "permanent", "API, worker", "worker", "the caps that hold runs back"),
    Key(
        "jobs:held:{gate}", "set", "permanent", "API, worker", "API, worker", "runs that count under a cap, not settled"
    ),
    Key(
        "jobs:{run_id}",
        "hash",
        "while it waits or is held, or is among the last 100 that are over",
        "API, worker",
        "worker, API",
        "the job: state, user, priority, resource, generation, crashes, worker, times; how it ended",
    ),
    Key("jobs:leases", "sorted set", "permanent", "worker", "worker, API", "running runs by the time their lease ends"),
    Key("jobs:scheduled", "sorted set", "permanent", "worker", "worker, API", "runs by the time of their next attempt"),
    Key("jobs:doorbell", "list", "permanent, at most 100 entries", "API, worker", "worker", "wakes waiting workers"),
    Key("jobs:doorbell:{worker_id}", "list", "60 s", "worker", "worker", "wakes a worker that stops"),
    Key("jobs:admitted:{priority}", "sorted set", "10 s", "API", "API", "places reserved for runs about to be queued"),
    Key("jobs:admitted:user:{user_id}", "sorted set", "10 s", "API", "API", "the same places, by user"),
    Key(
        "jobs:waiting:{user_id}",
        "set",
        "permanent, entries go as runs are taken",
        "API, worker",
        "API",
        "a user's runs that wait, to be taken or held back by a cap: the user's own limit",
    ),
    Key(
        "jobs:durations",
        "list",
        "permanent, at most 100 entries",
        "worker",
        "API",
        "seconds that the last runs took: the estimate",
    ),
    Key("jobs:finished", "list", "permanent, at most 100 entries", "API, worker", "API", "runs that were over last"),
    Key(
        "jobs:dead",
        "sorted set",
        "permanent, at most 1,000 entries",
        "worker",
        "operators, API",
        "dead letters by time; a copy of those in the database",
    ),
    Key(
        "jobs:queues",
        "set",
        "permanent; entries go with their queue's last run",
        "API, worker",
        "API, worker",
        "the queues, but for the default one, in which runs wait",
    ),
    Key(
        "jobs:heads",
        "sorted set",
        "permanent; entries go with their queue's last run",
        "API, worker",
        "worker",
        "those queues by the score of their first run, or less: a worker that serves several looks here",
    ),
    Key(
        "jobs:queue:{queue}:order",
        "sorted set",
        "permanent",
        "API, worker",
        "worker, API",
        "of each queue but the default one, as `jobs:order`",
    ),
    Key(
        "jobs:queue:{queue}:pending",
        "list",
        "permanent",
        "API, worker",
        "operators, autoscalers",
        "the same, as `jobs:pending`",
    ),
    Key(
        "jobs:queue:{queue}:pending:{priority}",
        "list",
        "permanent",
        "API, worker",
        "the same",
        "the same, as `jobs:pending:{priority}`",
    ),
    Key("jobs:queue:{queue}:parked", "sorted set", "permanent", "API, worker", "API", "the same, as `jobs:parked`"),
    Key(
        "jobs:queue:{queue}:doorbell",
        "list",
        "permanent, at most 100 entries; it goes with the queue's last run",
        "API, worker",
        "worker",
        "the same, as `jobs:doorbell`",
    ),
    Key(
        "jobs:queue:{queue}:durations",
        "list",
        "a week, at most 100 entries",
        "worker",
        "API",
        "the same, as `jobs:durations`",
    ),
    Key(
        "jobs:queue:{queue}:admitted:{priority}",
        "sorted set",
        "10 s",
        "API",
        "API",
        "the same, as `jobs:admitted:{priority}`",
    ),
    Key(
        "jobs:serving",
        "hash",
        "permanent; entries go with their worker",
        "worker",
        "API",
        "the queues of workers that serve others than the default one",
    ),
    Key(
        "jobs:platform",
        "string",
        "permanent",
        "API, worker, controller",
        "the same",
        'whose queue this is: "format id", the layout of these keys and the id of the database',
    ),
    Key("jobs:leader", "string", "one lease", "worker", "worker", "the one that compares the database with Redis"),
    Key(
        "jobs:workers",
        "sorted set",
        "permanent; entries go after one lease",
        "worker",
        "API",
        "live workers and their slots",
    ),
    Key(
        "jobs:cancels", "channel", "-", "API", "worker", "run ids to cancel, to be quick; the intent is in the database"
    ),
    Key(
        "agent:events:{run_id}",
        "stream",
        "until its events are stored; RUN_TIMEOUT_MAX_SECONDS and an hour where nobody stores them",
        "worker",
        "API, worker",
        "events of a run that are published and not stored yet, by number; bounded for each run, user and all",
    ),
    Key("agent:logs:{run_id}", "channel", "-", "API, worker", "API", "events as they happen, one JSON object a line"),
    Key("agent:user:{user_id}", "channel", "-", "API, worker", "API", "announces that runs of a user have new events"),
    Key(
        "agent:bus:{user_id}",
        "channel",
        "-",
        "API, controller",
        "API",
        'announces that a user has new events of the bus: "user cursor"',
    ),
    Key(
        "events:{type}",
        "channel",
        "-",
        "API, controller",
        "whoever waits for a type",
        'announces an event of the bus of this type: "user cursor"; the event is in the database',
    ),
    Key(
        "rates:{name}", "string", "until the rate is used up no more", "API", "API", "a limit on calls: when it is free"
    ),
    Key(
        "storage:{user_id}",
        "hash",
        "a day after it was counted last",
        "API, worker, controller",
        "API, worker",
        "runs, events and bytes of files that a user has; a copy, which controllers count anew",
    ),
    Key(
        "storage:known:users",
        "set",
        "a day after the last change",
        "API, worker, controller",
        "controller",
        "the users of whom storage:{user_id} may be there",
    ),
    Key(
        "storage:uploads:{run_id}",
        "hash",
        "120 s after the last upload has shown itself",
        "API",
        "API",
        "bytes reserved for files that are being uploaded",
    ),
    Key(
        "tools:published",
        "sorted set",
        "a minute after a worker last published its tools",
        "worker",
        "API",
        "digests of the sets of tools that live workers have, by their ends",
    ),
    Key(
        "tools:publishers", "sorted set", "the same", "worker", "API", "ids of the workers that publish, by their ends"
    ),
    Key("tools:set:{digest}", "string", "the same", "worker", "API", "such a set: its tools, with their schemas"),
    Key(
        "models:server:{server}",
        "hash",
        "permanent, one a model server; calls go with their end or their worker's lease",
        "worker",
        "worker",
        "the slots of a model server: who holds one, who waits, whose turn it is",
    ),
    Key("models:bell:{worker}", "list", "one lease", "worker", "worker", "wakes a worker whose calls were granted"),
    Key(
        "models:waits:{run_id}",
        "hash",
        "one lease, renewed while a call waits",
        "worker",
        "API",
        "what the model calls of a run wait for, for `explain`",
    ),
    Key(
        "models:tokens:{bucket}",
        "hash",
        "5 s after it is full again",
        "worker",
        "worker",
        "a token bucket of an agent or a user: when it is full again, and who is next",
    ),
    Key(
        "models:done:{ticket}",
        "string",
        "60 s",
        "worker",
        "worker",
        "that tokens were taken or settled: a script that is sent again does it once",
    ),
    Key("health:probe", "string", "60 s", "API", "nobody", "that Redis takes a write, for /health/ready"),
    Key(
        "controller:counting:{what}",
        "string",
        "one lease",
        "controller",
        "controller",
        "the controller that counts what users have stored: `rows` or `files`",
    ),
    Key(
        "controller:pools",
        "string",
        "one lease",
        "controller",
        "controller",
        "the process that manages the pools of agents",
    ),
    Key(
        "agent:{agent_id}",
        "hash",
        "5 minutes after its process last wrote it",
        "pool processes",
        "operators",
        "an agent that has a process: pool, name, number, process, open run; a copy of what the database has",
    ),
    Key(
        "process:{process_id}",
        "hash",
        "5 minutes after its last heartbeat",
        "pool processes, controller",
        "operators",
        "a process of a pool: node, status, capacity, agents, free places, last_heartbeat; a copy too",
    ),
    Key(
        "pool:{name}:agents",
        "set",
        "permanent; entries go with their agent's hash",
        "pool processes, controller",
        "operators",
        "the agents of a pool that have a process",
    ),
    Key(
        "pool:{name}:processes",
        "sorted set",
        "permanent; entries go with their process's hash",
        "pool processes, controller",
        "operators",
        "the processes of a pool, by how many agents more they take",
    ),
    Key(
        "pool:{name}:commands",
        "channel",
        "-",
        "API, controller, pool processes",
        "pool processes, controller",
        'calls processes of a pool: {"command": "agents" or "drain", "process": "id, or empty for all"}',
    ),
    Key(
        "rq:queues",
        "set",
        "permanent, one queue",
        "API, controller, jobs",
        "the same",
        "names of RQ's queues. RQ's keys have no prefix, its queues' names do",
    ),
    Key(
        "rq:queue:{queue}",
        "list",
        "permanent, empty while nothing waits",
        "API, controller, jobs",
        "the same",
        "pieces of bulk actions and exports that wait: {prefix}background-jobs",
    ),
    Key(
        "rq:queue:{queue}:intermediate",
        "list",
        "permanent, empty but for a moment",
        "API, controller, jobs",
        "the same",
        "a piece between the queue and its start",
    ),
    Key(
        "rq:job:{id}",
        "hash",
        "a minute while it waits, as long as it is carried out, a minute when it failed",
        "API, controller, jobs",
        "the same",
        "a piece and how it ended",
    ),
    Key(
        "rq:results:{id}",
        "stream",
        "a minute",
        "API, controller, jobs",
        "the same",
        "why a piece failed",
    ),
    Key(
        "rq:executions:{id}",
        "sorted set",
        "as long as it is carried out",
        "API, controller, jobs",
        "the same",
        "that a piece is being carried out",
    ),
    Key(
        "rq:execution:{id}",
        "hash",
        "as long as it is carried out",
        "API, controller, jobs",
        "the same",
        "the same",
    ),
    Key(
        "rq:wip:{queue}",
        "sorted set",
        "permanent, entries go with their piece",
        "API, controller, jobs",
        "the same",
        "pieces that are being carried out",
    ),
    Key(
        "rq:finished:{queue}",
        "sorted set",
        "permanent, entries go with their piece",
        "API, controller, jobs",
        "the same",
        "pieces that ended well",
    ),
    Key(
        "rq:failed:{queue}",
        "sorted set",
        "permanent, entries go with their piece",
        "API, controller, jobs",
        "the same",
        "pieces that failed",
    ),
    Key(
        "rq:workers",
        "set",
        "permanent, entries go with their worker",
        "API, controller, jobs",
        "the same",
        "RQ's workers",
    ),
    Key(
        "rq:workers:{queue}",
        "set",
        "permanent, entries go with their worker",
        "API, controller, jobs",
        "the same",
        "those of a queue",
    ),
    Key(
        "rq:worker:{name}",
        "hash",
        "8 minutes after its last sign of life",
        "API, controller, jobs",
        "the same",
        "such a worker",
    ),
    Key(
        "rq:clean_registries:{queue}",
        "string",
        "15 minutes",
        "API, controller, jobs",
        "the same",
        "that somebody tidies RQ's lists",
    ),
)
