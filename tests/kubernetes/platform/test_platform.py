"""The platform on a real cluster, by the scripts that operators use: deployed, verified, changed under load, undone."""

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

from backplane.domain.sandbox_labels import RUN
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


def test_deploying_again_changes_nothing(deployment: Deployment, first_deployment: Completed) -> None:
    def state() -> dict[str, JsonObject]:
        found = deployment.get("deployments,configmaps,services,networkpolicies,secrets")
        return {
            f"{item['kind']}/{item['metadata']['name']}": {key: item.get(key) for key in ("spec", "data")}
            for item in found["items"]
        }

    before, pods = state(), {pod["metadata"]["name"] for pod in deployment.get("pods")["items"]}
    done = deployment.deploy()

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
    await asyncio.wait_for(begun.wait(), 60)
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
