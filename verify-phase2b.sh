#!/usr/bin/env bash
# Checks a deployed platform as a user would: through the API's URL, with a token, and with kubectl for what users do not
# see. One line a check; it ends at the first that fails, with what to do. It makes one run, which stays in the user's
# list as any other, and changes nothing else.
set -euo pipefail
{ set +x; } 2>/dev/null # a trace would show the token

readonly NAMESPACE=agents TOOLS_NAMESPACE=agents-tools RUN_LABEL=agent-platform/run
readonly API=agent-api WORKER=agent-worker CONTROLLER=agent-controller
readonly CONTENT='written by verify-phase2b.sh'

usage() {
  cat <<'USAGE'
Usage: AGENT_API_TOKEN=… ./verify-phase2b.sh [options]

  --url URL          the API (or AGENT_API_URL); without it, kubectl forwards a port of this machine meanwhile
  --token-file FILE  file with the token, when it is not in AGENT_API_TOKEN
  --context NAME     context of kubectl (default: its current one)
  --timeout SECONDS  how long the run may take (default: 180)
  --without-jobs     the workers have another sandbox than Kubernetes, so look for no Job
  --help

It needs bash 5, curl, python3 and kubectl. KUBECTL names another kubectl program than the one in PATH.

Exit status: 0 all is well; 1 a check failed; 2 it could not begin.
USAGE
}

if ((BASH_VERSINFO[0] < 5)); then
  echo "This is bash $BASH_VERSION; install bash 5 or newer." >&2
  exit 2
fi

url=${AGENT_API_URL:-} token=${AGENT_API_TOKEN:-} token_file='' context='' timeout=180 jobs=true
unset AGENT_API_TOKEN
work='' run_id='' detail='' warning='' began=$EPOCHREALTIME all_began=$EPOCHREALTIME children=()

main() {
  parse_arguments "$@"
  umask 077
  work=$(mktemp -d "${TMPDIR:-/tmp}/verify-phase2b.XXXXXX")
  trap clean_up EXIT
  check_tools
  read_token

  check "deployments ready" deployments_are_ready
  check "pods healthy" pods_are_healthy
  [[ -n $url ]] || check "API reached" forward_api
  check "/health/ready" api_is_ready
  check "token known" token_is_known
  check "wrong token refused" wrong_token_is_refused
  check "run created" run_is_created
  ! $jobs || watch_jobs
  check "run started" run_is_started
  check "queued" run_was_queued
  check "streamed to the end" stream_came_to_its_end
  check "processed" run_was_processed
  check "files in the workspace" files_are_there
  ! $jobs || check "shell ran as a Job" shell_ran_as_a_job
  check "sandbox closed" sandbox_is_closed
  check "metrics of the API" api_has_metrics
  check "metrics of a worker" worker_has_metrics
  printf '\nAll is well, in %s s.\n' "$(since "$all_began")"
}

parse_arguments() {
  local option
  while (($# > 0)); do
    option=$1
    case $option in
      --help | -h)
        usage
        exit 0
        ;;
      --without-jobs)
        jobs=false
        shift
        continue
        ;;
      --url | --token-file | --context | --timeout) (($# > 1)) || refuse "$option needs a value" ;;
      *) refuse "unknown option $option" ;;
    esac
    case $option in
      --url) url=$2 ;;
      --token-file) token_file=$2 ;;
      --context) context=$2 ;;
      --timeout)
        [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--timeout takes seconds, from 1 to 99999"
        timeout=$2
        ;;
    esac
    shift 2
  done
  url=${url%/}
  [[ -z $url || $url =~ ^https?:// ]] || refuse "--url must begin with https:// or http://"
}

refuse() {
  printf '%s; --help lists the options.\n' "$1" >&2
  exit 2
}

check_tools() {
  local program lacking=()
  for program in curl python3 "${KUBECTL:-kubectl}"; do
    command -v "$program" >/dev/null || lacking+=("$program")
  done
  ((${#lacking[@]} == 0)) || refuse "install what is missing: ${lacking[*]}"
}

read_token() {
  if [[ -n $token_file ]]; then
    [[ -r $token_file ]] || refuse "there is no file $token_file that can be read"
    token=$(<"$token_file")
  fi
  if [[ -z $token ]]; then
    refuse "no token in AGENT_API_TOKEN or --token-file; make one: kubectl exec -n $NAMESPACE deployment/$API -- python -m agentctl token create --user verify"
  fi
  [[ $token != *[$'\n\r" \\']* ]] || refuse "the token holds a blank, a quote or more than one line"
  printf 'Authorization: Bearer %s\n' "$token" >"$work/right"
  printf 'Authorization: Bearer %s\n' "no-such-token" >"$work/wrong"
}

clean_up() {
  local child
  for child in ${children[@]+"${children[@]}"}; do kill "$child" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}

# --- one line a check ---

# Runs a function that sets `detail`, or ends by `fail`.
check() { # what function
  began=$EPOCHREALTIME detail='' warning=''
  current=$1
  "$2"
  printf 'ok     %7s s  %s%s\n' "$(since "$began")" "$1" "${detail:+: $detail}"
  [[ -z $warning ]] || printf 'WARNING           %s: %s\n' "$1" "$warning"
}

fail() { # what is wrong, what to do
  printf 'FAILED %7s s  %s: %s\n' "$(since "$began")" "$current" "$1"
  printf '\nWhat to do: %s\nPHASE2B-DEPLOYMENT.md, "Troubleshooting", goes by symptom.\n' "$2"
  exit 1
} >&2

since() { # a value of EPOCHREALTIME
  local now=${EPOCHREALTIME/[.,]/} then=${1/[.,]/}
  printf '%d.%02d' $(((now - then) / 1000000)) $(((now - then) % 1000000 / 10000))
}

k() { "${KUBECTL:-kubectl}" ${context:+--context "$context"} "$@"; }

# For the background: the process that is killed later is kubectl itself, not a shell that waits for it.
become_k() { exec "${KUBECTL:-kubectl}" ${context:+--context "$context"} "$@"; }

# A call of the API: the answer's body is in $work/body, its status in $status. The token is never an argument.
call() { # method path [body]
  status=$(curl -sS -o "$work/body" -w '%{http_code}' --max-time 30 -X "$1" -H "@$work/right" \
    ${3:+-H 'Content-Type: application/json' --data-binary "$3"} "$url$2" 2>"$work/error") || status=000
}

answered() { # what is wrong with the answer in hand
  local words
  if [[ $status == 000 ]]; then
    words=$(<"$work/error")
  else
    words="status $status, $(head -c 300 "$work/body")"
  fi
  printf '%s' "${words//$'\n'/ }"
}

field() { # Python expression over `body`
  python3 -c 'import json, sys
body = json.load(open(sys.argv[1]))
print(eval(sys.argv[2]))' "$work/body" "$1" 2>/dev/null
}

# --- the checks ---

deployments_are_ready() {
  local name counts ready wanted
  for name in $API $WORKER $CONTROLLER; do
    counts=$(k get deployment "$name" -n $NAMESPACE -o 'jsonpath={.status.readyReplicas}/{.spec.replicas}' 2>"$work/error") ||
      fail "$(head -n 1 "$work/error")" "deploy first (deploy-phase2b.sh), or name the right cluster (--context, KUBECONFIG)"
    ready=${counts%/*} wanted=${counts#*/}
    if [[ $name == "$WORKER" && $wanted == 0 ]]; then
      fail "$name is scaled to 0" "kubectl scale deployment $name --replicas=1 -n $NAMESPACE"
    fi
    ((${ready:-0} > 0 && ${ready:-0} >= wanted)) ||
      fail "$name has ${ready:-0} of $wanted pods ready" "kubectl describe deployment/$name -n $NAMESPACE; kubectl logs deployment/$name -n $NAMESPACE --tail=30"
    detail+="${detail:+, }$name $ready/$wanted"
  done
}

pods_are_healthy() {
  local pods name phase restarts reason count=0 restarted=0
  # shellcheck disable=SC2016 # the dollars are the template's
  pods=$(k get pods -n $NAMESPACE -o go-template='{{range .items}}{{if not .metadata.deletionTimestamp}}{{$pod := .}}{{range .status.containerStatuses}}{{$pod.metadata.name}} {{$pod.status.phase}} {{.restartCount}} {{with .state.waiting}}{{.reason}}{{end}}{{"\n"}}{{end}}{{end}}{{end}}')
  while read -r name phase restarts reason; do
    [[ -n $name ]] || continue
    count=$((count + 1)) restarted=$((restarted + restarts))
    [[ -z $reason || $reason == ContainerCreating || $reason == PodInitializing ]] ||
      fail "$name: $reason after $restarts restarts" "kubectl logs $name -n $NAMESPACE --previous --tail=30; kubectl describe pod $name -n $NAMESPACE"
    [[ $phase == Running || $phase == Pending || $phase == Succeeded ]] ||
      fail "$name is $phase" "kubectl describe pod $name -n $NAMESPACE"
  done <<<"$pods"
  detail="$count containers, $restarted restarts"
}

# Lets kubectl forward a free port of this machine; the port is in $port.
forward() { # target port
  local log
  log=$(mktemp "$work/forward.XXXXXX")
  become_k port-forward -n $NAMESPACE "$1" ":$2" --address 127.0.0.1 >"$log" 2>&1 &
  children+=($!)
  for _ in {1..150}; do
    port=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$log" | head -n 1)
    [[ -z $port ]] || return 0
    kill -0 "${children[-1]}" 2>/dev/null || break
    sleep 0.1
  done
  fail "kubectl forwards no port to $1: $(head -n 1 "$log")" "give the API's address (--url), or ask for the right to create pods/portforward in $NAMESPACE"
}

forward_api() {
  forward service/$API 8000
  url=http://127.0.0.1:$port
  detail="port-forward to $url"
}

api_is_ready() {
  call GET /health/ready
  [[ $status == 200 ]] ||
    fail "$(answered)" "mend the part that is not ok (redis, database, workspace): its address and credentials in the Secret, and the network to it; where nothing answers at all, the URL and the Ingress"
  detail=$(field '", ".join("%s %.0f ms" % (name, part["latency_ms"]) for name, part in body["parts"].items())') ||
    fail "$(answered)" "this is no agent API; look at the URL"
}

token_is_known() {
  call GET /agent/me
  [[ $status == 200 ]] ||
    fail "$(answered)" "make a token: kubectl exec -n $NAMESPACE deployment/$API -- python -m agentctl token create --user verify"
  detail=$(field 'body["name"] + ", tier " + body["tier"]')
}

wrong_token_is_refused() {
  status=$(curl -sS -o "$work/body" -w '%{http_code}' --max-time 30 -H "@$work/wrong" "$url/agent/me" 2>"$work/error") || status=000
  [[ $status == 401 ]] || fail "$(answered), not 401" "let nobody use this address: something before the API answers for it"
}

run_is_created() {
  local script plan target
  target=$(k get pods -n $NAMESPACE -l app.kubernetes.io/name=$API -o 'jsonpath={.items[0].status.podIP}')
  script=$(
    cat <<'SCRIPT'
set -e
mkdir -p results
wc -c < notes/hello.txt | tr -d ' ' > results/bytes.txt
echo "user $(id -u)"
if [ -e /var/run/secrets/kubernetes.io/serviceaccount/token ]; then echo "token found"; else echo "token none"; fi
echo "environment $(env | grep -cE '^(REDIS|DATABASE|S3)_' || true)"
if python3 -c 'import os, socket; socket.create_connection((os.environ["TARGET"], 8000), 3)' 2>/dev/null
then echo "network open"; else echo "network closed"; fi
SCRIPT
  )
  plan=$(python3 -c 'import json, sys
print(json.dumps({"action": "create", "prompt": "verify the deployment", "metadata": {"made_by": "verify-phase2b.sh"}, "plan": {"steps": [
    {"id": "write", "tool": "file_write", "arguments": {"path": "notes/hello.txt", "content": sys.argv[1]}},
    {"id": "count", "tool": "shell", "arguments": {"script": sys.argv[2], "environment": {"TARGET": sys.argv[3]}}, "needs": ["write"]}]}}))' "$CONTENT" "$script" "$target")
  call POST /agent/execute "$plan"
  [[ $status == 201 ]] || fail "$(answered)" "read the answer; kubectl logs deployment/$API -n $NAMESPACE --tail=30 has more"
  run_id=$(field 'body["run_id"]')
  detail=$run_id
}

# Jobs of the run, from before it begins: one that is gone by the time of the check was seen all the same.
watch_jobs() {
  become_k get jobs -n $TOOLS_NAMESPACE -l "$RUN_LABEL=$run_id" --watch -o name >"$work/jobs" 2>"$work/jobs.error" &
  children+=($!)
}

run_is_started() {
  call POST /agent/execute "{\"action\": \"start\", \"run_id\": \"$run_id\"}"
  if [[ $status == 503 ]]; then
    fail "$(answered)" "the queue is full or Redis is away: wait, add workers (kubectl scale deployment $WORKER --replicas=4 -n $NAMESPACE), or raise QUEUE_MAX_WAITING (a user's own) or QUEUE_MAX_WAITING_ALL"
  fi
  [[ $status == 200 ]] || fail "$(answered)" "read the answer; kubectl logs deployment/$API -n $NAMESPACE --tail=30 has more"
  detail="answered $(field 'body["status"]')"
}

run_was_queued() {
  call GET "/agent/logs/$run_id"
  if [[ $status != 200 || $(field '"queued" in [event["data"].get("status") for event in body["events"]]') != True ]]; then
    fail "$(answered)" "kubectl logs deployment/$API -n $NAMESPACE --tail=30"
  fi
  call GET /agent/queue
  [[ $status == 200 ]] || fail "$(answered)" "see that Redis answers; the API waits for it"
  detail=$(field '"{queued} wait, {running} run, {workers} workers with {max_concurrent} slots".format(**body)')
}

# The stream as `curl -N` has it: numbers without a hole, up to `end`.
stream_came_to_its_end() {
  local first='' code=0
  curl -sSN --max-time "$timeout" -H "@$work/right" "$url/agent/logs/$run_id/stream" 2>"$work/error" |
    while IFS= read -r line; do
      [[ -n $first || $line != data:* ]] || { first=$(since "$began") && printf '%s' "$first" >"$work/first"; }
      printf '%s\n' "$line"
    done >"$work/stream" || code=$?
  if ! detail=$(python3 - "$work/stream" 2>"$work/error.python" <<'PYTHON'
import json, sys

numbers, end = [], None
for frame in open(sys.argv[1], encoding="utf-8", newline="").read().replace("\r\n", "\n").split("\n\n"):
    fields = dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line and not line.startswith(":"))
    if "id" in fields:
        numbers.append(int(fields["id"]))
    if fields.get("event") == "end":
        end = json.loads(fields["data"])["data"]
if numbers != list(range(1, len(numbers) + 1)):
    sys.exit(f"the numbers of the events have a hole: {numbers}")
if end is None:
    sys.exit(f"it was cut after {len(numbers)} events, before the run's end")
if end["status"] != "completed":
    sys.exit(f"the run is {end['status']}: {(end.get('error') or {}).get('message', '')}")
print(f"{len(numbers)} events", end="")
PYTHON
  ); then
    call GET "/agent/runs/$run_id/explain"
    fail "$(<"$work/error.python")$( ((code == 0)) || tr '\n' ' ' <"$work/error"); the platform says: $(field 'body["text"]' || answered)" \
      "kubectl logs deployment/$WORKER -n $NAMESPACE --tail=30; for a stream that is cut: the proxy before the API buffers it or gives up before 15 s of silence"
  fi
  detail+=", the first after $(cat "$work/first") s"
}

run_was_processed() {
  call GET "/agent/runs/$run_id"
  [[ $status == 200 && $(field 'body["status"]') == completed ]] || fail "$(answered)" "kubectl logs deployment/$WORKER -n $NAMESPACE --tail=30"
  cp "$work/body" "$work/run"
  detail=$(field '", ".join(step["id"] + " " + step["status"] for step in body["steps"])')
  [[ $detail == "write completed, count completed" ]] || fail "$detail" "kubectl logs deployment/$WORKER -n $NAMESPACE --tail=30"
}

files_are_there() {
  local what="see that all workers and APIs have the same S3_BUCKET and S3_ENDPOINT, and that the keys may list, read and write there"
  call GET "/agent/runs/$run_id/files"
  detail=$(field '", ".join(file["path"] for file in body["files"])') || fail "$(answered)" "$what"
  [[ $detail == "notes/hello.txt, results/bytes.txt" ]] || fail "found ${detail:-none}" "$what"
  call GET "/agent/runs/$run_id/files/notes/hello.txt"
  [[ $status == 200 && $(<"$work/body") == "$CONTENT" ]] || fail "notes/hello.txt: $(answered)" "$what"
  call GET "/agent/runs/$run_id/files/results/bytes.txt"
  [[ $status == 200 && $(<"$work/body") == "${#CONTENT}" ]] || fail "results/bytes.txt: $(answered)" "$what"
}

shell_ran_as_a_job() {
  local found
  for _ in {1..50}; do
    found=$(sort -u "$work/jobs")
    [[ -z $found ]] || break
    sleep 0.1
  done
  [[ -n $found ]] || fail "no Job in $TOOLS_NAMESPACE has the label $RUN_LABEL=$run_id $(<"$work/jobs.error")" \
    "set SANDBOX=kubernetes for the workers; where they have another sandbox on purpose, --without-jobs"
  detail=${found//$'\n'/, }
}

# What the script of the run could see from inside.
sandbox_is_closed() {
  local output
  cp "$work/run" "$work/body"
  output=$(field '[step for step in body["steps"] if step["id"] == "count"][0]["result"]["output"]')
  [[ $output == *"token none"* ]] || fail "the code of runs finds a service account's token" "run no foreign code: set SANDBOX=kubernetes for the workers (and automountServiceAccountToken: false for its Jobs)"
  [[ $output == *"environment 0"* ]] || fail "the code of runs sees the platform's credentials" "run no foreign code: set SANDBOX=kubernetes for the workers; kubectl get jobs -n $TOOLS_NAMESPACE -o yaml shows what its Jobs are given"
  if $jobs && [[ $output == *"user 0"$'\n'* ]]; then
    fail "the command ran as root" "let its Jobs have runAsNonRoot, as the platform's own have"
  fi
  detail="$(sed -n 's/^user /user id /p' <<<"$output"), no token, no credentials"
  [[ $output == *"network closed"* ]] ||
    warning="it reached the API's pod: this cluster's network plugin enforces no NetworkPolicy, so run no foreign code here"
}

metrics_of() { # address names…
  local name text
  text=$(curl -sS --max-time 30 "$1" 2>"$work/error") || fail "$(<"$work/error")" "see that METRICS_PORT is set for the workers"
  for name in "${@:2}"; do
    grep -q "^${name}[{ ]" <<<"$text" || fail "$1 has no $name" "see that the pods run the image that was deployed"
  done
  detail="$(grep -c '^agent_' <<<"$text") values"
}

api_has_metrics() {
  forward deployment/$API 8000
  metrics_of "http://127.0.0.1:$port/metrics" agent_queue_depth agent_runs
}

worker_has_metrics() {
  local metrics_port
  metrics_port=$(k get deployment $WORKER -n $NAMESPACE -o 'jsonpath={.spec.template.spec.containers[0].ports[?(@.name=="metrics")].containerPort}')
  [[ -n $metrics_port ]] || fail "the worker's container has no port named metrics" "apply the manifests as they are (deploy-phase2b.sh)"
  forward deployment/$WORKER "$metrics_port"
  metrics_of "http://127.0.0.1:$port/metrics" agent_worker_slots agent_worker_runs
}

main "$@"
