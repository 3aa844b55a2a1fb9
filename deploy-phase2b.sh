#!/usr/bin/env bash
# Deploys the platform on Kubernetes: looks for everything that it needs and lists what is missing before it changes
# anything, applies, waits until all runs, or shows why it does not and how to go back. Safe to run again.
#
# Credentials go to kubectl by stdin only: no argument, file or line of output has them.
set -euo pipefail
{ set +x; } 2>/dev/null # a trace would show them

readonly NAMESPACE=agents TOOLS_NAMESPACE=agents-tools SECRET=agent-credentials IMAGE_NAME=agent-api
readonly FIRST=agent-api # of the Deployments
readonly CREDENTIALS_VERSION=agent-platform/credentials-version
readonly REQUIRED=(REDIS_URL DATABASE_URL S3_BUCKET S3_ENDPOINT S3_REGION S3_ACCESS_KEY S3_SECRET_KEY)
readonly OPTIONAL=(REDIS_USERNAME REDIS_PASSWORD REDIS_SENTINEL_USERNAME REDIS_SENTINEL_PASSWORD
  UPSTASH_REDIS_REST_URL UPSTASH_REDIS_REST_TOKEN PGBOUNCER_URL OPENAI_API_KEY ANTHROPIC_API_KEY QDRANT_API_KEY SECRETS_KEY)
readonly HOPELESS_RESTARTS=3 LOG_LINES=15

# shellcheck disable=SC2016 # the dollars are the templates' own
{
  # Of each ReplicaSet its deployment, revision and hash.
  REVISIONS='{{range .items}}{{$set := .}}{{range .metadata.ownerReferences}}{{.name}}'
  REVISIONS+=' {{index $set.metadata.annotations "deployment.kubernetes.io/revision"}}'
  REVISIONS+=' {{index $set.metadata.labels "pod-template-hash"}}{{"\n"}}{{end}}{{end}}'

  # Of each container that does not run well, and each pod without a node: pod|container|restarts|state|message
  container='{{$its := .}}{{with .state.waiting}}{{$pod}}|{{$its.name}}|{{$its.restartCount}}|{{.reason}}|'
  container+='{{if .message}}{{.message}}{{end}}{{"\n"}}{{end}}'
  container+='{{with .state.terminated}}{{if .exitCode}}{{$pod}}|{{$its.name}}|{{$its.restartCount}}|{{.reason}}|'
  container+='exit code {{.exitCode}}{{"\n"}}{{end}}{{end}}'
  container+='{{if .state.running}}{{if not .ready}}{{$pod}}|{{$its.name}}|{{$its.restartCount}}|running, not ready|'
  container+='{{"\n"}}{{end}}{{end}}'
  TROUBLES='{{range .items}}{{$pod := .metadata.name}}{{range .status.conditions}}{{if eq .type "PodScheduled"}}'
  TROUBLES+='{{if ne .status "True"}}{{$pod}}|-|0|not scheduled|{{.message}}{{"\n"}}{{end}}{{end}}{{end}}'
  TROUBLES+="{{range .status.initContainerStatuses}}$container{{end}}"
  TROUBLES+="{{range .status.containerStatuses}}$container{{end}}{{end}}"
}
readonly REVISIONS TROUBLES
unset container

usage() {
  cat <<'USAGE'
Usage: ./deploy-phase2b.sh --image NAME:VERSION [options]

  --image NAME:VERSION  the image to run, NAME@sha256:… too (or IMAGE in the environment)
  --credentials FILE    lines NAME=VALUE; goes before the environment
  --overlay DIR         kustomization to apply (default: k8s/overlays/production beside this script)
  --context NAME        context of kubectl (default: its current one)
  --timeout SECONDS     how long the rollout may take (default: 300)
  --dry-run             do all checks, show what would change, change nothing
  --help

Credentials, from the environment or FILE: REDIS_URL, DATABASE_URL, S3_BUCKET, S3_ENDPOINT, S3_REGION, S3_ACCESS_KEY,
S3_SECRET_KEY; where they are used also REDIS_USERNAME, REDIS_PASSWORD, REDIS_SENTINEL_USERNAME, REDIS_SENTINEL_PASSWORD,
UPSTASH_REDIS_REST_URL, UPSTASH_REDIS_REST_TOKEN, PGBOUNCER_URL, OPENAI_API_KEY, ANTHROPIC_API_KEY, QDRANT_API_KEY,
SECRETS_KEY.
KUBECTL names another kubectl program than the one in PATH.

Exit status: 0 all runs; 1 it was applied and does not run; 2 something is missing, nothing was changed.
PHASE2B-DEPLOYMENT.md has the whole story.
USAGE
}

if ((BASH_VERSINFO[0] < 5)); then
  echo "This is bash $BASH_VERSION; install bash 5 or newer." >&2
  exit 2
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
image=${IMAGE:-} overlay=$here/k8s/overlays/production credentials_file='' context='' timeout=300 dry_run=false
declare -A credentials=()
missing=() deployments=() touched=() started=$SECONDS secret_changed=false
rendered='' objects='' work=''

main() {
  parse_arguments "$@"
  work=$(mktemp -d "${TMPDIR:-/tmp}/deploy-phase2b.XXXXXX")
  work=$(cd "$work" && pwd -P)
  trap 'rm -rf "$work"' EXIT
  read_credentials
  check
  if $dry_run; then
    show_changes
    return
  fi
  apply
  say_what_next
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
      --dry-run)
        dry_run=true
        shift
        continue
        ;;
      --image | --credentials | --overlay | --context | --timeout)
        (($# > 1)) || refuse "$option needs a value"
        ;;
      *) refuse "unknown option $option" ;;
    esac
    case $option in
      --image) image=$2 ;;
      --credentials) credentials_file=$2 ;;
      --overlay) overlay=$2 ;;
      --context) context=$2 ;;
      --timeout)
        [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || refuse "--timeout takes seconds, from 1 to 99999"
        timeout=$2
        ;;
    esac
    shift 2
  done
}

refuse() {
  printf '%s; --help lists the options.\n' "$1" >&2
  exit 2
}

say() { printf '%s\n' "$*"; }

k() { "${KUBECTL:-kubectl}" ${context:+--context "$context"} --request-timeout=30s "$@"; }

# --- what is needed ---

# Taken from the environment first and no longer handed on to programs that are started; then from the file, which is
# read and never executed.
read_credentials() {
  local name line value number=0 ignored=()
  for name in "${REQUIRED[@]}" "${OPTIONAL[@]}"; do
    [[ -n ${!name:-} ]] && credentials[$name]=${!name}
    unset "$name"
  done
  [[ -n $credentials_file ]] || return 0
  if [[ ! -f $credentials_file || ! -r $credentials_file ]]; then
    missing+=("credentials: there is no file $credentials_file that can be read")
    return
  fi
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    if [[ ! $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Z][A-Z0-9_]*)=(.*)$ ]]; then
      missing+=("credentials: line $number of $credentials_file is not NAME=VALUE")
      continue
    fi
    name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then
      value=${BASH_REMATCH[1]}
    fi
    if [[ " ${REQUIRED[*]} ${OPTIONAL[*]} " == *" $name "* ]]; then
      credentials[$name]=$value
    else
      ignored+=("$name")
    fi
  done <"$credentials_file"
  ((${#ignored[@]} == 0)) || say "Not a credential, so not used: ${ignored[*]} (settings belong into the overlay)."
}

check() {
  local item
  check_image
  check_credentials
  if check_kubectl; then
    check_overlay
    check_cluster
  fi
  ((${#missing[@]} > 0)) || return 0
  {
    say "Nothing was changed. Missing:"
    for item in "${missing[@]}"; do say "  - $item"; done
  } >&2
  exit 2
}

check_image() {
  if [[ -z $image ]]; then
    missing+=("image: say which one to run, --image registry.example.org/agent-api:1.0.0")
  elif [[ ! $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*|@sha256:[0-9a-f]{64})$ ||
    ! ${image##*/} =~ [:@] ]]; then
    missing+=("image: $image names no version; give NAME:VERSION, so that there is something to go back to")
  elif [[ $image == *:latest ]]; then
    missing+=("image: latest is another image tomorrow; give a version, so that there is something to go back to")
  fi
}

check_credentials() {
  local name absent=()
  for name in "${REQUIRED[@]}"; do
    [[ -n ${credentials[$name]:-} ]] || absent+=("$name")
  done
  ((${#absent[@]} == 0)) || missing+=("credentials: set ${absent[*]} in the environment or in a file (--credentials)")
  check_url REDIS_URL '^rediss?(\+(sentinel|cluster))?://' 'redis://, rediss://, redis+sentinel:// or redis+cluster://'
  check_url DATABASE_URL '^postgres(ql)?(\+psycopg)?://' 'postgresql:// (a file of one machine cannot be shared by pods)'
  check_url PGBOUNCER_URL '^postgres(ql)?(\+psycopg)?://' 'postgresql://'
  check_url UPSTASH_REDIS_REST_URL '^https?://' 'https://'
  check_url S3_ENDPOINT '^https?://' 'https:// or http://'
}

check_url() { # name pattern what
  local value=${credentials[$1]:-} host
  [[ -n $value ]] || return 0
  if [[ ! $value =~ $2 ]]; then
    missing+=("credentials: $1 must begin with $3")
    return
  fi
  host=${value#*://}
  host=${host%%[/?#]*}
  host=${host##*@}
  if [[ $host =~ ^(localhost|127\.|\[::1\]) ]]; then
    missing+=("credentials: $1 names this machine's loopback, which in a pod is the pod; give an address pods can reach")
  fi
}

check_kubectl() {
  local version program=${KUBECTL:-kubectl}
  if ! command -v "$program" >/dev/null; then
    missing+=("kubectl: there is no $program in PATH; install it, or name it in KUBECTL")
    return 1
  fi
  version=$(k version --client -o yaml 2>/dev/null | sed -n 's/^ *gitVersion: v\([0-9]*\.[0-9]*\).*/\1/p' | head -n 1)
  if [[ -z $version ]]; then
    missing+=("kubectl: $program does not run; \"$program version --client\" says why")
    return 1
  fi
  if ((${version%%.*} == 1 && ${version##*.} < 20)); then
    missing+=("kubectl: this is $version; install 1.20 or newer")
    return 1
  fi
}

check_overlay() {
  if [[ ! -f $overlay/kustomization.yaml ]]; then
    missing+=("overlay: there is no $overlay/kustomization.yaml; --overlay names another folder")
    return
  fi
  overlay=$(cd "$overlay" && pwd -P)
  if ! rendered=$("${KUBECTL:-kubectl}" kustomize "$overlay" 2>"$work/error"); then
    missing+=("overlay: $overlay does not build: $(head -c 500 "$work/error")")
    return
  fi
  objects=$(objects_of <<<"$rendered")
  mapfile -t deployments < <(awk -v namespace="$NAMESPACE" '$2 == "Deployment" && $3 == namespace {print $4}' <<<"$objects")
  if grep -q " Secret $NAMESPACE $SECRET\$" <<<"$objects"; then
    missing+=("overlay: $overlay holds a Secret $SECRET, which would replace the credentials given here; leave it out")
  fi
  ((${#deployments[@]} > 0)) || missing+=("overlay: $overlay holds no Deployment in $NAMESPACE")
}

check_cluster() {
  local name error namespaces
  if [[ -n $context ]] && ! k config get-contexts "$context" >/dev/null 2>&1; then
    missing+=("cluster: kubectl knows no context $context; \"kubectl config get-contexts\" lists them")
    return
  fi
  if ! error=$(k get --raw /version 2>&1); then
    missing+=("cluster: it does not answer (KUBECONFIG=${KUBECONFIG:-~/.kube/config}): ${error:0:300}")
    return
  fi
  namespaces=$(k get namespaces -o go-template='{{range .items}}{{.metadata.name}} {{.status.phase}}{{"\n"}}{{end}}' 2>/dev/null || true)
  for name in "$NAMESPACE" "$TOOLS_NAMESPACE"; do
    if grep -qx "$name Terminating" <<<"$namespaces"; then
      missing+=("cluster: namespace $name is being deleted; wait until \"kubectl get namespace $name\" finds none")
    fi
  done
  check_kinds
}

# That the cluster knows each kind of object in the overlay (an old one may not, and operators bring kinds of their own),
# and that this user may apply it.
check_kinds() {
  local versions served version kind namespace resource unknown=() denied=()
  versions=$(k api-versions 2>/dev/null) || return 0
  served=$(k api-resources --no-headers 2>/dev/null | awk '{print $(NF-2), $NF, $1}' || true)
  while read -r version kind namespace; do
    [[ -n $kind ]] || continue # the overlay does not build, which is reported already
    resource=$(awk -v version="$version" -v kind="$kind" '
      function group(of) { return index(of, "/") ? substr(of, 1, index(of, "/") - 1) : "" }
      $2 == kind && group($1) == group(version) { print $3 (group(version) ? "." group(version) : ""); exit }' <<<"$served")
    if [[ -z $resource ]] || ! grep -qxF "$version" <<<"$versions"; then
      unknown+=("$kind ($version)")
      continue
    fi
    may patch "$resource" "$namespace"
  done < <(cut -d ' ' -f 1-3 <<<"$objects" | sort -u)
  may create namespaces -
  may create deployments.apps "$NAMESPACE"
  may create secrets "$NAMESPACE"
  may patch secrets "$NAMESPACE"
  may list pods "$NAMESPACE"
  may list replicasets.apps "$NAMESPACE"
  may get pods/log "$NAMESPACE"
  ((${#unknown[@]} == 0)) ||
    missing+=("cluster: it does not know $(join ', ' "${unknown[@]}"); install what brings them (KEDA, Prometheus Operator), upgrade the cluster, or use an overlay without")
  ((${#denied[@]} == 0)) ||
    missing+=("rights: your user may not $(join ', ' "${denied[@]}"); ask the cluster's administrator for them")
}

may() { # verb resource namespace
  local where=()
  [[ $3 == - ]] || where=(-n "$3")
  k auth can-i "$1" "$2" ${where[@]+"${where[@]}"} >/dev/null 2>&1 || denied+=("$1 $2${where[1]:+ in $3}")
}

join() { # separator items…
  local separator=$1 joined=$2 item
  for item in "${@:3}"; do joined+=$separator$item; done
  printf '%s' "$joined"
}

# --- what is applied ---

# The overlay with the image, and with the version of the Secret in every pod, so that other credentials mean other pods.
# In words that the kustomize of kubectl 1.20 knows too.
render() { # version of the Secret
  local up name=$image pin deployment
  up=$(sed 's|[^/]*||g; s|/|../|g' <<<"$work")
  if [[ $name == *@* ]]; then
    pin="digest: ${name#*@}" name=${name%%@*}
  else
    pin="newTag: \"${name##*:}\"" name=${name%:*}
  fi
  cat >"$work/kustomization.yaml" <<KUSTOMIZATION
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
bases:
  - ${up}${overlay#/}
images:
  - name: $IMAGE_NAME
    newName: $name
    $pin
patchesStrategicMerge:
  - pods.yaml
KUSTOMIZATION
  for deployment in "${deployments[@]}"; do
    cat <<PATCH
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: $deployment
  namespace: $NAMESPACE
spec:
  template:
    metadata:
      annotations:
        $CREDENTIALS_VERSION: "$1"
PATCH
  done >"$work/pods.yaml"
  if ! "${KUBECTL:-kubectl}" kustomize "$work" 2>"$work/error"; then
    cat "$work/error" >&2
    exit 2
  fi
}

# Lines "apiVersion kind namespace name" of the objects on stdin; the namespace is - for what has none.
objects_of() {
  awk '
    function told() { if (kind) print version, kind, namespace, name; kind = name = ""; namespace = "-" }
    BEGIN { namespace = "-" }
    /^---/ { told() }
    /^[a-zA-Z]/ { section = $1 }
    /^apiVersion:/ { version = $2 }
    /^kind:/ { kind = $2 }
    section == "metadata:" && /^  name:/ { name = $2 }
    section == "metadata:" && /^  namespace:/ { namespace = $2 }
    END { told() }'
}

# The rendered documents of one part: `basis` is what the others need to be there (without the class of its priority a
# pod is refused), `first` is all but the Deployments that follow $FIRST.
part() { # basis|first
  awk -v part="$1" -v first="$FIRST" '
    function told() { if (document && wanted()) printf "---\n%s", document; document = kind = name = "" }
    function wanted() {
      if (part == "basis") return kind == "Namespace" || kind == "PriorityClass"
      return kind != "Deployment" || name == first
    }
    /^---/ { told(); next }
    /^[a-zA-Z]/ { section = $1 }
    /^kind:/ { kind = $2 }
    section == "metadata:" && /^  name:/ { name = $2 }
    { document = document $0 "\n" }
    END { told() }' <<<"$rendered"
}

secret_manifest() {
  local name
  printf 'apiVersion: v1\nkind: Secret\ntype: Opaque\nmetadata:\n  name: %s\n  namespace: %s\n' "$SECRET" "$NAMESPACE"
  printf '  labels:\n    app.kubernetes.io/part-of: agent-platform\ndata:\n'
  for name in "${REQUIRED[@]}" "${OPTIONAL[@]}"; do
    [[ -n ${credentials[$name]:-} ]] || continue
    printf '  %s: %s\n' "$name" "$(printf '%s' "${credentials[$name]}" | base64 | tr -d '\n')"
  done
}

# Grows when, and only when, the Secret is changed.
secret_version() {
  k get secret "$SECRET" -n "$NAMESPACE" -o 'jsonpath={.metadata.resourceVersion}' 2>/dev/null || printf 'none'
}

show_changes() {
  local status=0
  rendered=$(render "$(secret_version)")
  say "Everything that is needed is there. Image $image, overlay $overlay."
  if ! k get namespace "$NAMESPACE" "$TOOLS_NAMESPACE" >/dev/null 2>&1; then
    say "Would be made, beside the Secret $SECRET with ${#credentials[@]} values:"
    objects_of <<<"$rendered" | awk '{print "  " $2 " " $4}'
  else
    say "Would change, beside the Secret $SECRET:"
    k diff -f - <<<"$rendered" || status=$?
    ((status <= 1)) || exit 1
    ((status == 1)) || say "  nothing"
  fi
  say "Nothing was changed."
}

# The API first: its pods are ready when they reach the database, Redis and the bucket. So an image, credentials or
# settings that do not work are found while the workers of before go on.
apply() {
  local told followers=() name
  say "Image $image, overlay $overlay, namespaces $NAMESPACE and $TOOLS_NAMESPACE."
  part basis | k apply -f - >/dev/null
  told=$(secret_manifest | k apply -f -)
  say "${told//$'\n'/; }"
  [[ $told != *configured ]] || secret_changed=true
  rendered=$(render "$(secret_version)")
  for name in "${deployments[@]}"; do [[ $name == "$FIRST" ]] || followers+=("$name"); done
  if ((${#followers[@]} < ${#deployments[@]})); then
    apply_documents "$(part first)"
    touched=("$FIRST")
    wait_until_running "$FIRST"
  fi
  if ((${#followers[@]} > 0)); then
    apply_documents "$rendered"
    touched=("${deployments[@]}")
    wait_until_running "${followers[@]}"
  fi
}

apply_documents() { # YAML
  local told
  # That kubectl takes over an account which the cluster itself made is no news.
  told=$(k apply -f - <<<"$1" 2> >(grep -v last-applied-configuration >&2)) || {
    say "$told"
    say "The cluster refused what stands above; what came before it was applied. Mend it and run this again." >&2
    exit 1
  }
  say "$(grep -c . <<<"$told") objects applied, $(grep -cv 'unchanged$' <<<"$told" || true) of them new or changed."
}

# --- waiting ---

wait_until_running() { # deployments…
  local deadline=$((started + timeout)) name state trouble left=("$@") still
  declare -A told=()
  while ((${#left[@]} > 0)); do
    still=()
    for name in "${left[@]}"; do
      state=$(k rollout status "deployment/$name" -n "$NAMESPACE" --watch=false 2>&1 || true)
      if [[ $state == *"successfully rolled out"* ]]; then
        say "  $name runs ($((SECONDS - started)) s)"
        continue
      fi
      still+=("$name")
      state=${state##*$'\n'}
      if [[ ${told[$name]:-} != "$state" ]]; then
        say "  $name: ${state#Waiting for deployment spec update to be observed...}"
        told[$name]=$state
      fi
      if trouble=$(hopeless "$name"); then
        not_running "$name cannot start: $trouble" "${still[@]}"
      fi
    done
    left=(${still[@]+"${still[@]}"})
    ((${#left[@]} > 0)) || break
    ((SECONDS < deadline)) || not_running "not running after $timeout s: ${left[*]}" "${left[@]}"
    sleep 1
  done
}

# What the names of the deployment's newest pods have in common.
newest_hash() { # deployment
  k get replicasets -n "$NAMESPACE" -o go-template="$REVISIONS" |
    awk -v name="$1" '$1 == name && $2 >= newest {newest = $2; hash = $3} END {print hash}'
}

# TROUBLES of the deployment's newest pods.
troubles() { # deployment
  local hash
  hash=$(newest_hash "$1")
  [[ -z $hash ]] || k get pods -n "$NAMESPACE" -l "pod-template-hash=$hash" -o go-template="$TROUBLES"
}

# States that waiting does not mend.
hopeless() { # deployment
  local pod container restarts state
  while IFS='|' read -r pod container restarts state _; do
    case $state in
      InvalidImageName | ErrImageNeverPull | ImagePullBackOff | CreateContainerConfigError) ;;
      CrashLoopBackOff) ((restarts >= HOPELESS_RESTARTS)) || continue ;;
      *) continue ;;
    esac
    printf '%s in container %s of pod %s' "$state" "$container" "$pod"
    return 0
  done < <(troubles "$1" 2>/dev/null)
  return 1
}

not_running() { # why deployments…
  local name why=$1
  shift
  {
    say ""
    say "FAILED: $why"
    for name in "$@"; do explain "$name"; done | without_secrets
    say ""
    say "To go back to what ran before (nothing to go back to after a first deployment):"
    for name in "${touched[@]}"; do say "  kubectl rollout undo deployment/$name -n $NAMESPACE"; done
    ! $secret_changed || say "The Secret was changed as well and does not go back by this: deploy with the credentials of before."
    say "To stop taking runs meanwhile; they stay queued:"
    say "  kubectl scale deployment agent-worker --replicas=0 -n $NAMESPACE"
    say "Pods of the version before go on serving as long as the new ones are not ready. Mend it and run this again."
    say "PHASE2B-DEPLOYMENT.md, \"Troubleshooting\", goes by symptom."
  } >&2
  exit 1
}

explain() { # deployment
  local pod container restarts state message
  say ""
  say "$1:"
  k get deployment "$1" -n "$NAMESPACE" -o 'jsonpath={range .status.conditions[?(@.type=="ReplicaFailure")]}  {.message}{"\n"}{end}' || true
  while IFS='|' read -r pod container restarts state message; do
    [[ $state != PodInitializing ]] || continue
    if [[ $container == - ]]; then
      say "  pod $pod: $state${message:+: $message}"
      continue
    fi
    say "  pod $pod, container $container: $state, restarts: $restarts${message:+: $message}"
    log_of "$pod" "$container" "$restarts"
  done < <(troubles "$1")
  say "  latest warnings:"
  k get events -n "$NAMESPACE" --field-selector type=Warning --sort-by=.lastTimestamp \
    -o go-template='{{range .items}}{{.involvedObject.kind}}/{{.involvedObject.name}} {{.reason}}: {{.message}}{{"\n"}}{{end}}' |
    grep -E "^[A-Za-z]+/$1(-$(newest_hash "$1")[^ ]*)? " | cut -c 1-400 | uniq | tail -n 8 | sed 's/^/    /' || say "    none"
}

log_of() { # pod container restarts
  local lines=''
  lines=$(k logs "$1" -n "$NAMESPACE" -c "$2" --tail="$LOG_LINES" 2>/dev/null || true)
  if [[ -z $lines ]] && (($3 > 0)); then
    lines=$(k logs "$1" -n "$NAMESPACE" -c "$2" --tail="$LOG_LINES" --previous 2>/dev/null || true)
  fi
  [[ -z $lines ]] || printf '    | %s\n' "${lines//$'\n'/$'\n    | '}"
}

# What goes through has no value of the credentials in it, and no password of their URLs.
without_secrets() {
  local line name value secrets=()
  for name in REDIS_URL DATABASE_URL S3_ACCESS_KEY S3_SECRET_KEY REDIS_PASSWORD REDIS_SENTINEL_PASSWORD \
    UPSTASH_REDIS_REST_TOKEN PGBOUNCER_URL OPENAI_API_KEY ANTHROPIC_API_KEY QDRANT_API_KEY SECRETS_KEY; do
    value=${credentials[$name]:-}
    [[ -z $value ]] || secrets+=("$value")
    if [[ $value =~ ://[^/@]*:([^/]+)@ ]]; then secrets+=("${BASH_REMATCH[1]}"); fi
  done
  while IFS= read -r line || [[ -n $line ]]; do
    for value in "${secrets[@]}"; do line=${line//"$value"/***}; done
    printf '%s\n' "$line"
  done
}

say_what_next() {
  cat <<NEXT

All runs. From this machine the API is at http://127.0.0.1:8000 while this runs:
  kubectl port-forward -n $NAMESPACE service/agent-api 8000:8000
For users, at the host name of the Ingress: kubectl get ingress -n $NAMESPACE

The first token (shown once, only its digest is kept):
  kubectl exec -n $NAMESPACE deployment/agent-api -- python -m agentctl token create --user NAME --tier admin

Check everything as a user would:
  AGENT_API_TOKEN=… ./verify-phase2b.sh

Go back to the version before, and stop taking runs:
  kubectl rollout undo deployment/agent-api -n $NAMESPACE
  kubectl scale deployment agent-worker --replicas=0 -n $NAMESPACE
NEXT
}

main "$@"
