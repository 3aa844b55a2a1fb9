"""The database of record: every run, step, event, user and token, in SQLite or PostgreSQL."""

from backplane.store.agents.agents import Agents
from backplane.store.agents.bell import PlaceBell
from backplane.store.agents.events import AgentEvents
from backplane.store.agents.messages import AgentMessages
from backplane.store.agents.pools import AgentPools
from backplane.store.agents.processes import AgentProcesses
from backplane.store.agents.repair import AgentRepair
from backplane.store.agents.views import AgentViews
from backplane.store.background_jobs import BackgroundJobs
from backplane.store.bus.bell import BusBell
from backplane.store.bus.events import EventBus
from backplane.store.bus.hooks import Hooks
from backplane.store.bus.waits import EventWaits, Woken
from backplane.store.database import SQLITE_PATH_BYTES, Database, parse_url
from backplane.store.dead_letters import DeadLetters
from backplane.store.decisions import Decisions
from backplane.store.deployments.deployments import DeploymentStore
from backplane.store.derived_runs import DerivedRuns
from backplane.store.events import Events
from backplane.store.gpus.machines import GpuMachines, ModelServerTable
from backplane.store.journal import Journal
from backplane.store.ledger import Ledger
from backplane.store.migrations import migrate
from backplane.store.model_calls import ModelCalls
from backplane.store.model_usage import ModelUsage
from backplane.store.overview import Overviews
from backplane.store.people.audit import AuditLog
from backplane.store.people.preferences import Preferences
from backplane.store.people.sessions import Sessions
from backplane.store.plans import Plans
from backplane.store.platform import platform_id
from backplane.store.retention import Retention
from backplane.store.run_lists import RunLists
from backplane.store.run_transaction import RunTransaction
from backplane.store.run_writes import AddEvents, RunWrite
from backplane.store.running_runs import RunningRuns
from backplane.store.runs import Runs
from backplane.store.schedules import Schedules
from backplane.store.secrets import SecretStore
from backplane.store.services import Services
from backplane.store.usage import UsageCounts
from backplane.store.users import Users
from backplane.store.webhooks import Webhooks

__all__ = [
    "SQLITE_PATH_BYTES",
    "AddEvents",
    "AgentEvents",
    "AgentMessages",
    "AgentPools",
    "AgentProcesses",
    "AgentRepair",
    "AgentViews",
    "Agents",
    "AuditLog",
    "BackgroundJobs",
    "BusBell",
    "Database",
    "DeadLetters",
    "Decisions",
    "DeploymentStore",
    "EventBus",
    "EventWaits",
    "GpuMachines",
    "Hooks",
    "Ledger",
    "ModelCalls",
    "ModelServerTable",
    "ModelUsage",
    "Overviews",
    "Preferences",
    "Retention",
    "RunLists",
    "RunTransaction",
    "RunWrite",
    "RunningRuns",
    "Runs",
    "Schedules",
    "SecretStore",
    "Services",
    "Sessions",
    "Store",
    "UsageCounts",
    "Users",
    "Webhooks",
    "Woken",
    "parse_url",
]
"""What others may import: the store, its parts, and the transaction of a running run. The values that go in and out are
in `backplane.domain`."""


class Store:
    """The subjects of one database. Every call raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.users = Users(database)
        self.sessions = Sessions(database)
        self.audit = AuditLog(database)
        self.preferences = Preferences(database)
        self.runs = Runs(database)
        self.run_lists = RunLists(database)
        self.overviews = Overviews(database)
        self.running_runs = RunningRuns(database)
        self.journal = Journal(database)
        self.events = Events(database)
        self.model_calls = ModelCalls(database)
        self.model_usage = ModelUsage(database)
        self.dead_letters = DeadLetters(database)
        self.decisions = Decisions(database)
        self.derived_runs = DerivedRuns(database)
        self.plans = Plans(database)
        self.ledger = Ledger(database)
        self.webhooks = Webhooks(database)
        self.secrets = SecretStore(database)
        self.services = Services(database)
        self.retention = Retention(database)
        self.usage_counts = UsageCounts(database)
        self.bus = EventBus(database)
        self.bus_bell = BusBell()
        self.event_waits = EventWaits(database)
        self.hooks = Hooks(database)
        self.background_jobs = BackgroundJobs(database)
        self.place_bell = PlaceBell()
        self.agents = Agents(database, self.place_bell)
        self.agent_pools = AgentPools(database)
        self.agent_events = AgentEvents(database)
        self.agent_messages = AgentMessages(database, self.place_bell)
        self.agent_processes = AgentProcesses(database, self.place_bell)
        self.agent_repair = AgentRepair(database)
        self.agent_views = AgentViews(database)
        self.schedules = Schedules(database)
        self.deployments = DeploymentStore(database, self.bus_bell)
        self.gpu_machines = GpuMachines(database)
        self.model_servers = ModelServerTable(database)

    async def migrate(self) -> str | None:
        """Bring the tables to the newest state. Any number of processes may do so at once. The revision of a newer
        release, where that made them: they stay as they are then."""
        return await migrate(self.database)

    async def platform_id(self, *, make: bool = True) -> str:
        """The id of this database, made when it is first asked for; without `make` it may be empty. It goes with a
        backup of the database."""
        return await platform_id(self.database, make=make)
