"""The platform on a real cluster, by the scripts that operators use: deployed, verified, changed under load, undone."""

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import yaml

from backplane.domain.sandbox_labels import RUN
from tests.kubernetes.platform.conftest import example
from tests.kubernetes.platform.deployment import (
    API,
    CONTROLLER,
    NAMESPACE,
    TOOLS_NAMESPACE,
    WORKER,
    Deployment,
    JsonObject,
    Load,
    User,
    shell_plan,
)
from tests.waiting import wait_until

Completed = subprocess.CompletedProcess[str]

AGENTS, POOL = "/api/v1/agents", "developer_pool"
BUSY = shell_plan("for part in 1 2 3; do cat in.txt; sleep 0.3; done; wc -w in.txt > out.txt")


def secrets_of(file: Path) -> set[str]:
    values = dict(line.split("=", 1) for line in file.read_text().splitlines())
    passwords = {values[name].split("@")[0].rsplit(":", 1)[1] for name in ("REDIS_URL", "DATABASE_URL")}
    return passwords | {values["S3_ACCESS_KEY"], values["S3_SECRET_KEY"]}


def test_the_script_deploys_from_nothing(deployment: Deployment, first_deployment: Completed) -> None:
    assert all(f"{name} runs" in first_deployment.stdout for name in (API, WORKER, CONTROLLER))
    assert "kubectl rollout undo deployment/agent-api -n agents" in first_deployment.stdout
    shown = first_deployment.stdout + first_deployment.stderr
    assert not any(secret in shown for secret in secrets_of(deployment.credentials))


def test_verified_as_a_user_would(deployment: Deployment, user: User) -> None:
    done = deployment.verify(user.token)

    assert done.returncode == 0, done.stdout + done.stderr
    # A cluster for tests may enforce no NetworkPolicy.
    assert {line.split()[0] for line in done.stdout.splitlines()[:-2]} - {"WARNING"} == {"ok"}
    assert "shell ran as a Job" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("All is well")
    assert user.token not in done.stdout + done.stderr


def test_verifying_with_a_wrong_token_says_what_to_do(deployment: Deployment, user: User) -> None:
    done = deployment.verify("not-the-token")

    assert done.returncode == 1
    assert "FAILED" in done.stderr
    assert "agentctl token create" in done.stderr


def test_what_the_cluster_does_not_know_is_missing_before_anything_is_changed(
    deployment: Deployment, first_deployment: Completed, tmp_path: Path
) -> None:
    folder = tmp_path.resolve()
    bases = os.path.relpath(deployment.overlay, folder)
    (folder / "kustomization.yaml").write_text(f"bases:\n  - {bases}\nresources:\n  - thing.yaml\n")
    (folder / "thing.yaml").write_text("apiVersion: example.org/v1\nkind: Unheard\nmetadata: {name: of}\n")
    before = deployment.get("deployment", API)["metadata"]["generation"]

    done = replace(deployment, overlay=folder).deploy(image="agent-api:another")

    assert done.returncode == 2
    assert done.stderr.startswith("Nothing was changed.")
    assert "it does not know Unheard (example.org/v1)" in done.stderr
    assert deployment.get("deployment", API)["metadata"]["generation"] == before


def test_what_the_user_may_not_do_is_missing_before_anything_is_changed(
    deployment: Deployment, kubeconfig: str, tmp_path: Path
) -> None:
    nobody = json.loads(deployment.run("config", "view", "--raw", "--flatten", "-o", "json"))
    for user in nobody["users"]:
        user["user"]["as"] = "nobody"
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(nobody))

    done = deployment.deploy(KUBECONFIG=str(file))

    assert done.returncode == 2
    assert "your user may not" in done.stderr
    for right in ("patch deployments.apps in agents", "patch roles.rbac.authorization.k8s.io in agents-tools"):
        assert right in done.stderr


async def test_deploying_again_changes_nothing(deployment: Deployment, first_deployment: Completed) -> None:
    async def pools_are_empty() -> bool:
        pods = await asyncio.to_thread(deployment.get, "pods")
        return not any("-pool-" in pod["metadata"]["name"] for pod in pods["items"])

    await wait_until(pools_are_empty, 180, "the controller has ended the processes that no agent needs")

    def state() -> dict[str, JsonObject]:
        found = deployment.get("deployments,configmaps,services,networkpolicies,secrets")
        return {
            f"{item['kind']}/{item['metadata']['name']}": {key: item.get(key) for key in ("spec", "data")}
            for item in found["items"]
        }

    before, pods = state(), {pod["metadata"]["name"] for pod in deployment.get("pods")["items"]}
    done = await asyncio.to_thread(deployment.deploy)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "secret/agent-credentials unchanged" in done.stdout
    assert state() == before
    assert {pod["metadata"]["name"] for pod in deployment.get("pods")["items"]} == pods


def test_a_dry_run_shows_the_difference_and_makes_none(deployment: Deployment, first_deployment: Completed) -> None:
    before = deployment.get("deployment", API)["metadata"]["generation"]

    done = deployment.deploy("--dry-run", image="agent-api:another")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "+        image: agent-api:another" in done.stdout
    assert deployment.get("deployment", API)["metadata"]["generation"] == before


async def test_a_restart_of_the_api_under_load_loses_nothing_and_streams_go_on(
    deployment: Deployment, user: User
) -> None:
    load, resumed = Load(user, BUSY), user.resumed
    # Longer than an old pod goes on serving, so this stream is cut for sure.
    long = await user.start(shell_plan("for second in $(seq 40); do echo $second; sleep 1; done"), "long")
    following = asyncio.create_task(user.follow(long))
    async with load.flowing():
        await load.more(1)
        await asyncio.to_thread(deployment.run, "rollout", "restart", f"deployment/{API}", "-n", NAMESPACE)
        await deployment.settled(API)
        await wait_until(lambda: user.resumed > resumed, 60, "a stream is cut and goes on")
        await load.more(2)
        load.finished[long] = await following

    load.check()


async def test_a_restart_of_the_workers_under_load_loses_nothing(deployment: Deployment, user: User) -> None:
    load = Load(user, BUSY)
    async with load.flowing():
        await load.more(2)
        await asyncio.to_thread(deployment.run, "rollout", "restart", f"deployment/{WORKER}", "-n", NAMESPACE)
        await deployment.settled(WORKER)
        await load.more(4)

    load.check()


async def test_a_worker_that_is_killed_in_a_step_costs_no_run(deployment: Deployment, user: User) -> None:
    run_id = await user.start(shell_plan("echo begun; sleep 4; echo done; wc -w in.txt > out.txt"), "killed-worker")
    begun = asyncio.Event()

    def seen(event: JsonObject) -> None:
        if event["type"] == "log" and event["data"]["line"] == "begun":
            begun.set()

    following = asyncio.create_task(user.follow(run_id, seen))
    async with asyncio.timeout(60):
        await begun.wait()
    [pod] = deployment.pods(WORKER)
    delete = ("delete", "pod", pod["metadata"]["name"], "-n", NAMESPACE, "--force", "--grace-period=0")
    await asyncio.to_thread(deployment.run, *delete)
    events = await following

    assert events[-1]["data"]["status"] == "completed", events[-1]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    steps = (await user.show(run_id))["steps"]
    assert [step["status"] for step in steps] == ["completed", "completed"]
    files = await user.ask("GET", f"/agent/runs/{run_id}/files")
    assert [file["path"] for file in files["files"]] == ["in.txt", "out.txt"]
    jobs = deployment.get("jobs", "-l", f"{RUN}={run_id}", namespace=TOOLS_NAMESPACE)["items"]
    assert len(jobs) == 1, "the next worker goes on with the command that runs"


async def test_scaled_up_and_down_under_load(deployment: Deployment, user: User) -> None:
    load = Load(user, BUSY)
    async with load.flowing():
        await load.more(1)
        await deployment.scaled(WORKER, 4)

        async def four_work() -> bool:
            return bool((await user.ask("GET", "/agent/queue"))["workers"] == 4)

        await wait_until(four_work, 60, "four workers take runs")
        await load.more(2)
        await deployment.scaled(WORKER, 1)
        await load.more(2)

    load.check()


async def test_the_eleventh_agent_of_a_pool_starts_a_pod(deployment: Deployment, user: User) -> None:
    await with_role(user)
    for number in range(11):
        await user.ask("POST", f"{AGENTS}/pools/{POOL}/agents", {"name": f"agent-{number}"})

    async def is_there() -> bool:
        found = await pool(user)
        shown = ("process_count", "total_capacity", "used_capacity", "utilization")
        return tuple(found[name] for name in shown) == (2, 20, 11, 0.55)

    await wait_until(is_there, 90, "the pool has 2 processes, 20 places, 11 taken, 55 %")
    assert deployment.get("deployment", "agent-developer-pool")["spec"]["replicas"] == 2


async def test_a_turn_whose_pod_is_removed_by_force_goes_on_in_another_and_repeats_nothing(
    deployment: Deployment, user: User
) -> None:
    await with_role(user)
    agent = await user.ask("POST", f"{AGENTS}/pools/{POOL}/agents", {"name": "agent-0"})
    sent = await user.ask("POST", f"{AGENTS}/{agent['agent_id']}/messages", {"text": "6"})
    begun = asyncio.Event()

    def seen(event: JsonObject) -> None:
        if event["type"] == "step" and "piece-1" in json.dumps(event):
            begun.set()

    following = asyncio.create_task(user.follow(sent["run_id"], seen))
    async with asyncio.timeout(60):
        await begun.wait()
    process = (await user.ask("GET", f"{AGENTS}/{agent['agent_id']}"))["process"]
    pod = process.rsplit("-", 2)[0]
    delete = ("delete", "pod", pod, "-n", NAMESPACE, "--force", "--grace-period=0")
    await asyncio.to_thread(deployment.run, *delete)
    events = await following

    assert events[-1]["data"]["status"] == "completed", events[-1]
    [message] = (await user.ask("GET", f"{AGENTS}/{agent['agent_id']}/messages?limit=1"))["messages"]
    assert message["answer"] == "1 1 1 1 1 1"
    assert (await user.ask("GET", f"{AGENTS}/{agent['agent_id']}"))["process"] != process
    # Room on a small node for the tests that follow.
    await user.ask("PATCH", f"{AGENTS}/pools/{POOL}", {"sleep_after_seconds": 1})


async def test_where_a_pool_gets_no_pod_its_agent_says_why(deployment: Deployment, user: User) -> None:
    await user.ask("POST", f"{AGENTS}/pools", {"name": "nowhere_pool", "role": "echo"})
    agent = await user.ask("POST", f"{AGENTS}/pools/nowhere_pool/agents", {"name": "nobody"})
    await user.ask("POST", f"{AGENTS}/{agent['agent_id']}/messages", {"text": "1"})

    async def is_named() -> bool:
        found = await user.ask("GET", f"{AGENTS}/{agent['agent_id']}/explain")
        return "agent-platform/pool=nowhere_pool" in found["text"]

    await wait_until(is_named, 30, "the label that no Deployment has is named")
    await user.ask("POST", f"{AGENTS}/{agent['agent_id']}/terminate?remove_messages=true", {})


async def test_workers_of_a_queue_of_their_own_carry_out_what_waits_there(deployment: Deployment, user: User) -> None:
    run = {"action": "run", "prompt": "test", "queue": "gpu", "plan": shell_plan("echo done")}
    run_id = (await user.ask("POST", "/agent/execute", run))["run_id"]
    assert await waiting(deployment, "gpu") == 1
    copied = deployment.get("deployment", WORKER)
    copied["metadata"] = {"name": f"{WORKER}-gpu", "namespace": NAMESPACE}
    labels = {"app.kubernetes.io/name": f"{WORKER}-gpu"}
    copied["spec"]["selector"]["matchLabels"] = labels
    template = copied["spec"]["template"]
    template["metadata"] = {"labels": {**template["metadata"]["labels"], **labels}}
    [container] = template["spec"]["containers"]
    container["env"].append({"name": "WORKER_QUEUES", "value": "gpu"})
    container["resources"]["requests"]["cpu"] = "10m"  # a small node may have no more to give
    copied["spec"]["replicas"] = 1
    deployment.apply(copied)
    try:
        events = await user.follow(run_id)
        assert events[-1]["data"]["status"] == "completed", events[-1]
        assert await waiting(deployment, "gpu") == 0
    finally:
        deployment.run("delete", "deployment", f"{WORKER}-gpu", "-n", NAMESPACE, "--wait=false")


def test_the_autoscaler_of_the_documentation_is_accepted(deployment: Deployment, first_deployment: Completed) -> None:
    scaler = yaml.safe_load(example("kind: HorizontalPodAutoscaler"))
    known = deployment.run("api-versions").split()
    # Before Kubernetes 1.23 the same fields go by another version.
    scaler["apiVersion"] = "autoscaling/v2" if "autoscaling/v2" in known else "autoscaling/v2beta2"

    assert "agent-worker-gpu" in deployment.apply(scaler, "--dry-run=server")


async def with_role(user: User) -> None:
    await user.ask("PATCH", f"{AGENTS}/pools/{POOL}", {"role": "echo"})


async def pool(user: User) -> JsonObject:
    pools = (await user.ask("GET", f"{AGENTS}/pools"))["pools"]
    return next(found for found in pools if found["pool_name"] == POOL)


async def waiting(deployment: Deployment, queue: str) -> float:
    """Runs that wait in the queue, as a pod of the cluster reads it from the API's metrics."""
    address = deployment.pods(API)[0]["status"]["podIP"]
    script = (
        f"import urllib.request as u; print(u.urlopen('http://{address}:8000/metrics', timeout=20).read().decode())"
    )
    read = ("exec", "-n", NAMESPACE, f"deployment/{CONTROLLER}", "--", "python", "-c", script)
    lines = (await asyncio.to_thread(deployment.run, *read)).splitlines()
    wanted = [line for line in lines if line.startswith("agent_queue_depth{") and f'queue="{queue}"' in line]
    return sum(float(line.split()[-1]) for line in wanted if 'state="waiting"' in line)


async def test_deploying_again_keeps_the_number_of_workers(deployment: Deployment, user: User) -> None:
    await deployment.scaled(WORKER, 2)

    done = await asyncio.to_thread(deployment.deploy)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(deployment.pods(WORKER)) == 2
    await deployment.scaled(WORKER, 1)


async def test_a_broken_image_is_reported_and_undone_while_the_old_one_serves(
    deployment: Deployment, user: User
) -> None:
    load = Load(user, BUSY, lanes=1)
    async with load.flowing():
        done = await asyncio.to_thread(deployment.deploy, "--timeout", "60", image="localhost/agent-api:broken")

        assert done.returncode == 1
        assert "localhost/agent-api:broken" in done.stderr
        assert "ErrImagePull" in done.stderr or "ImagePullBackOff" in done.stderr
        assert f"kubectl rollout undo deployment/{API} -n {NAMESPACE}" in done.stderr
        assert f"deployment/{WORKER}" not in done.stderr, "it was not touched, so there is nothing to undo"
        await load.more(1)
        await asyncio.to_thread(deployment.run, "rollout", "undo", f"deployment/{API}", "-n", NAMESPACE)
        await deployment.settled(API)
        await load.more(1)

    load.check()
    for name in (API, WORKER, CONTROLLER):
        images = {pod["spec"]["containers"][0]["image"] for pod in deployment.pods(name)}
        assert images == {deployment.image}


async def test_wrong_credentials_are_reported_without_being_shown(
    deployment: Deployment, user: User, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.env"
    right = deployment.credentials.read_text()
    database = next(line for line in right.splitlines() if line.startswith("DATABASE_URL="))
    password = database.split("@")[0].rsplit(":", 1)[1]
    wrong.write_text(right.replace(f"{password}@", "not-the-password@"))
    workers = [pod["metadata"]["name"] for pod in deployment.pods(WORKER)]

    done = await asyncio.to_thread(deployment.deploy, "--timeout", "35", credentials=wrong)
    workers_then = [pod["metadata"]["name"] for pod in deployment.pods(WORKER)]
    again = await asyncio.to_thread(deployment.deploy)

    assert done.returncode == 1
    assert "container migrate" in done.stderr
    assert "password authentication failed" in done.stderr
    assert workers_then == workers, "those of before go on"
    assert "not-the-password" not in done.stdout + done.stderr
    assert again.returncode == 0, again.stdout + again.stderr
    assert await user.ask("GET", "/agent/me")
