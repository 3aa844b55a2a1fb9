"""Limits that were settings once and that nobody would set: constants, each with the reason for its value.

Sizes are in bytes and times in seconds, as the names say. A process that finds one of these names in its environment
reports that it has no effect any more (`backplane.configuration`). Read them as `fixed.NAME`, so that a test can give
another value.
"""

from backplane.domain.sizes import KIB, MIB

PROMPT_MAX_CHARS = 100_000
"""No model reads more at once; long texts are files of the run."""
HANDLER_VALUE_MAX_BYTES = 256 * KIB
"""JSON of an input, of what an effect gives, or of what a handler returns: what is larger is a file. All of a run are
read when it goes on after a crash."""
HANDLER_RUN_MAX_BYTES = 16 * MIB
"""The same of all effects of a run, with what its tools printed: so much is read again each time the run goes on, and
by whoever looks at it."""
HANDLER_EFFECTS_MAX = 10_000
"""Effects of one handler's run: their results are read and given again after a crash, in a second or two."""
HANDLER_DEPTH_MAX = 10
"""How deep runs may start runs: a chain that is longer calls itself."""
AGENT_STATE_MAX_BYTES = 256 * KIB
"""JSON of an agent's state, which each turn reads and may write: what is larger is a file of the agent."""
AGENT_MAILBOX_MAX = 1000
"""Messages that wait for one agent. At a second a turn the last of them waits for a quarter of an hour."""
AGENT_MAILBOX_RETRY_SECONDS = 5
"""When a message that a full mailbox refused may be sent again: some turns end in that time."""
AGENTS_MAX_PER_USER = 10_000
"""Agents of a user, with those that were terminated: their rows stay until they are deleted. A row each, so it only
bounds a loop that went wrong."""
AGENT_MESSAGES_PAGE_BYTES = 4 * MIB
"""Of a page of a conversation. A message and its answer may have half a megabyte, and a page 200 of them."""
AGENT_SEND_DEPTH_MAX = HANDLER_DEPTH_MAX
"""How deep messages may lead to messages: a chain that is longer goes in a circle."""
AGENT_REGISTRY_HEARTBEAT_SECONDS = 30.0
"""How often a process writes itself and its agents to the registry that operators read."""
AGENT_PROCESS_GONE_SECONDS = 300.0
"""When a silent process is taken out of that registry."""
AGENT_MANAGE_SECONDS = 1.0
"""How often the pools are looked after: a lost process's agents go elsewhere, a full pool gets a process. A look is two
statements."""
AGENT_START_SECONDS = 15.0
"""How long processes that were started may take until whoever looks after the pools asks what keeps them: on a node
that has the image a pod takes five seconds."""
AGENT_SHORTAGE_SECONDS = 10.0
"""How often the reasons why pools have too few processes are written for the API to show."""
AGENT_SHORTAGE_KEEP_SECONDS = 30
"""How long such a reason is shown when nobody writes it any more."""
AGENT_PROCESS_EMPTY_SECONDS = 60.0
"""How long a process stands empty before it is ended: a start takes two seconds, so this spares most of them."""
AGENT_DATABASE_POOL_SIZE = 3
AGENT_DATABASE_POOL_OVERFLOW = 5
"""DATABASE_POOL_SIZE and _OVERFLOW of a pool process, where they are not set: there may be many of them."""
AGENT_TURNS_AT_ONCE = 50
"""Turns that a process carries out at once, however many agents it has: its connections to the database are few, and
more turns would wait for one for longer than a call may take."""
AGENT_REPAIR_SECONDS = 5.0
"""How often a controller looks for agents whose next message was not opened, and for messages whose time is up."""
AGENT_REPAIR_BATCH = 200
"""Of these, how many at once: each is a short transaction."""
METADATA_MAX_BYTES = 16 * KIB
"""Metadata are labels, which every list of runs carries."""
ESTIMATE_INITIAL_SECONDS = 120.0
"""How long a run is taken to last before any was measured; the first hundred runs replace it."""
RUN_LOG_LINES_BURST = 10_000
"""Ten seconds of RUN_LOG_LINES_PER_SECOND's default: what a build prints at its start."""
LOG_LINE_MAX_BYTES = 8 * KIB
"""A terminal shows no longer line as one; a longer one is split, and nothing of it is lost."""
STEP_OUTPUT_FILE_SECONDS = 30.0
"""How long the file of a step's whole output may take on its way into the workspace: 64 MiB at 2 MiB/s. It is a
comfort, for which the run does not wait longer."""
SANDBOX_IDLE_SECONDS = 600.0
"""A Job that no worker has talked to for so long ends. Far more than the lease of a worker, after which another one
takes the Job over."""
MODEL_MAX_OUTPUT_BYTES = 1 * MIB
"""Far over MODEL_MAX_OUTPUT_TOKENS: it only bounds memory against a server that ignores that."""
MODEL_RECORD_MAX_BYTES = 256 * KIB
"""Longest prompt that is kept with a step, in bytes; a longer one is cut in the middle."""
MODEL_RETRY_MAX_SECONDS = 60.0
"""Longest pause between two tries of a call at the same server, also when it asks for more: a limit by the minute, as
most have, is over then, and MODEL_FALLBACKS are quicker than any longer wait."""
MODEL_SLOT_LEASE_SECONDS = 15.0
"""A model slot whose worker is silent so long is free. As LEASE_SECONDS' default: both say when a worker counts as
dead."""
MODEL_TURN_SECONDS = 10.0
"""So long a model at a full server goes on before another that waits may take its place: some loads of a model from
disk."""
PLAN_FILES_LISTED = 200
"""Files of the workspace that a planner is shown: some 4,000 tokens of names."""
AGENT_RESULT_CHARS = 20_000
"""Of a tool's output, what a model is shown: some 5,000 tokens, a fraction of the smallest context in use."""
OUTSIDE_REDIRECTS = 5
"""Browsers follow up to 20; an API that needs more than five is misconfigured."""
MEMORY_MAX_CHARS = 8000
"""The longest memory: what an embedding model still distinguishes."""
MEMORY_TIMEOUT_SECONDS = 10.0
"""One call to Qdrant, or the wait for others who use the folder; the step is retried after it."""
ARTIFACTS_WAIT_SECONDS = 10.0
"""How long a change of an agent's artifacts waits for others; each of them takes milliseconds."""
WORKSPACE_REFUSED_SECONDS = 60.0
"""How long a store may refuse (no right, no room) before what needs it fails: a bucket's rights take a minute to reach
all of its servers."""
WORKSPACE_MAX_DEPTH = 64
"""Most folders above a file: deeper trees are made by programs that went wrong."""
WORKSPACE_STEP_ATTRIBUTES_MAX_BYTES = 32 * MIB
"""Of one step, the names, times, modes and links that the journal keeps: some 100,000 files. It bounds a row of the
database."""
WORKSPACE_RUN_ATTRIBUTES_MAX_BYTES = 64 * MIB
"""The same of all steps of a run."""
STREAM_RING_EVENTS = 2048
"""Events of a watched run that an API process holds: a reader that is further behind reads them from the database."""
STREAM_RING_BYTES = 4 * MIB
"""The same in bytes."""
STREAM_SEND_TIMEOUT_SECONDS = 60.0
"""A reader that takes nothing for so long is disconnected. One that takes what there is, be it little, is not."""
STREAM_REDIS_EVENTS = 10_000
"""Most events of a run that Redis keeps until the database has them; STREAM_REDIS_RUN_BYTES is what bounds memory."""
STREAM_REDIS_RUN_BYTES = 4 * MIB
"""The same in bytes: what a run prints in the seconds for which a database is away. STREAM_REDIS_BYTES sets what all
runs may have."""
STREAM_REDIS_USER_BYTES = 16 * MIB
"""The same of all runs of a user: of 256 MiB, a sixteenth."""
STREAM_REDIS_TTL_SECONDS = 3600
"""How much longer than RUN_TIMEOUT_MAX_SECONDS Redis keeps events that nobody stored: for an hour without a
worker."""
EVENTS_FLUSH_SECONDS = 0.02
"""How long events are gathered before the database write: 50 statements a second of a worker, however much is printed.
Watchers do not wait for it."""
EVENTS_GATHER_SECONDS = 0.005
"""How long events that follow upon others are gathered before they are published: shorter than anybody sees."""
FEED_POSITIONS_MAX = 20
"""Queued runs of a user whose position the stream of all the user's runs shows: as many as a screen."""
WEBHOOK_POLL_SECONDS = 1.0
"""How often a controller looks for webhooks to send: a receiver waits no longer for the first attempt, and a look is
one statement."""
WEBHOOK_LEASE_SECONDS = 60.0
"""After so long, what a lost controller was sending is sent by another; never less than twice WEBHOOK_TIMEOUT_SECONDS,
or a slow receiver is sent the same webhook twice."""
WEBHOOK_USER_SHARE = 4
"""One user gets so manieth a part of WEBHOOK_CONCURRENCY, so that four slow receivers hold up nobody else."""
WEBHOOK_RETRY_BASE_SECONDS = 120.0
"""Pause before a webhook's second attempt, which doubles each time: what WEBHOOK_MAX_ATTEMPTS then takes is some four
hours, for which a receiver may be away."""
WEBHOOK_RETRY_MAX_SECONDS = 14_400.0
"""Longest pause between a webhook's attempts, also when the receiver asks for more."""
WEBHOOK_SECRET_OVERLAP_SECONDS = 86_400.0
"""How long a rotated webhook secret still signs beside the new one: a day to change it at the receiver."""
BUS_POLL_SECONDS = 1.0
"""How often a controller looks for ends of runs that become events, and for waits whose time is up: each look is one
statement."""
BUS_BATCH = 200
"""Of these, how many in one transaction: it takes milliseconds, for which a user's other events wait."""
BUS_WAKE_SECONDS = 5.0
"""When a run that is to be woken is looked at again: it had not stopped yet, or the controller was lost."""
SERVICE_POLL_SECONDS = 1.0
"""How often a controller looks which services are to be checked, and which containers are not as declared: each look is
one statement."""
SERVICE_CONTAINER_SECONDS = 5.0
"""How often the containers of services are looked at: each look starts the engine's program twice."""
CONTAINERS_USE_SECONDS = 30.0
"""How often it is looked what containers use: Docker takes two seconds for each kind."""
DEPLOYMENTS_LOOK_SECONDS = 1.0
"""How often deployments are looked at while one of them is on its way: a list of each kind of the cluster's objects."""
DEPLOYMENTS_REST_SECONDS = 3.0
"""The same while all are as wanted: a change that a user asks for waits so long at most."""
SCHEDULES_POLL_SECONDS = 1.0
"""How often a controller looks for schedules whose time has come: each look is one statement on an index."""
SCHEDULES_BATCH = 100
"""Of these, how many at once: each is a message, some short transactions."""
SCHEDULE_FAULT_SECONDS = 300.0
"""How long one rests that a controller cannot read, as where the machine lacks its time zone."""
RETENTION_SECONDS = 300.0
"""How often a controller looks for what is past its retention, which counts in days."""
RETENTION_BATCH = 200
"""Events that are removed in one transaction: it takes milliseconds, so nobody waits for its locks."""
RETENTION_PAUSE_SECONDS = 0.05
"""Pause between two such transactions: an old database is cleaned up by 4,000 events a second beside its work."""
USAGE_SECONDS = 600.0
"""How often a controller counts users' runs and events: by what is made in between a user may be over a limit."""
POD_DELETION_COST_SECONDS = 5.0
"""How often controllers mark the pods with the fewest runs: an autoscaler decides every 15 seconds or more seldom."""
SESSION_CHECK_SECONDS = 1800.0
"""How often a controller looks for what sessions left, which lies there for SESSION_MAX_SECONDS anyway."""
SANDBOX_COLLECT_SECONDS = 30.0
"""How often a controller looks for Jobs whose run is over or has another worker: one list of the cluster's server."""

REPLACED = {
    "RECONCILE_SECONDS": "HEARTBEAT_SECONDS",
    "WEBHOOK_LEASE_SECONDS": f"{WEBHOOK_LEASE_SECONDS:g}, or twice WEBHOOK_TIMEOUT_SECONDS where that is more",
    "WEBHOOK_USER_CONCURRENCY": f"WEBHOOK_CONCURRENCY / {WEBHOOK_USER_SHARE}",
}
"""Names of settings whose value comes from another one now, and how."""
NEVER_SETTINGS = frozenset(
    {
        *("KIB", "MIB", "WEBHOOK_USER_SHARE", "REPLACED", "NEVER_SETTINGS"),
        *("SERVICE_POLL_SECONDS", "SERVICE_CONTAINER_SECONDS"),
        *("DEPLOYMENTS_LOOK_SECONDS", "DEPLOYMENTS_REST_SECONDS"),
        *("BUS_POLL_SECONDS", "BUS_BATCH", "BUS_WAKE_SECONDS"),
        *("AGENT_STATE_MAX_BYTES", "AGENT_MAILBOX_MAX", "AGENT_MAILBOX_RETRY_SECONDS", "AGENTS_MAX_PER_USER"),
        *("AGENT_SEND_DEPTH_MAX", "AGENT_REGISTRY_HEARTBEAT_SECONDS"),
        *("AGENT_MANAGE_SECONDS", "AGENT_PROCESS_EMPTY_SECONDS", "AGENT_TURNS_AT_ONCE"),
        *("AGENT_START_SECONDS", "AGENT_SHORTAGE_SECONDS", "AGENT_SHORTAGE_KEEP_SECONDS"),
        *("AGENT_DATABASE_POOL_SIZE", "AGENT_DATABASE_POOL_OVERFLOW"),
        *("AGENT_PROCESS_GONE_SECONDS", "AGENT_REPAIR_SECONDS", "AGENT_REPAIR_BATCH"),
        *("SCHEDULES_POLL_SECONDS", "SCHEDULES_BATCH"),
    }
)
"""Names of this module that were no settings."""
GPU_LOOK_SECONDS = 10.0
"""How often machines that start or end are looked at: a new one has 30 tries, so far apart, to become healthy."""
GPU_SERVERS_SECONDS = 5.0
"""How often a worker reads which GPU machines there are. A machine drains for three times as long, so each worker knows
by then."""
GPU_PROVIDER_PAUSE_MAX_SECONDS = 120.0
"""Longest pause after a provider that does not answer: machines that cost money are waiting to be stopped."""
