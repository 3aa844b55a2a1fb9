#!/usr/bin/env bash
# Sets the concurrency of the Ollama on this machine, by a systemd drop-in, to what the platform will send it.
# Safe to run again: it changes and restarts nothing when the drop-in is as it should be. It never installs Ollama.
#
#   sudo OLLAMA_NUM_PARALLEL=4 OLLAMA_MAX_LOADED_MODELS=2 OLLAMA_KEEP_ALIVE=5m scripts/ollama_setup.sh [--dry-run]
#
# The same numbers belong into the workers' environment, beside OLLAMA_HOST. `agentctl models fit` helps to choose them.
set -euo pipefail

fail() { echo "ollama_setup: $*" >&2; exit 1; }

dry_run=false
case "${1:-}" in
    "") ;;
    --dry-run) dry_run=true ;;
    *) fail "unknown argument $1; there is --dry-run, all else comes from the environment (see the first lines)" ;;
esac

parallel=${OLLAMA_NUM_PARALLEL:-4}
loaded=${OLLAMA_MAX_LOADED_MODELS:-2}
keep_alive=${OLLAMA_KEEP_ALIVE:-5m}
# Where Ollama listens: other machines reach it only when that is asked for.
listen=${OLLAMA_LISTEN:-127.0.0.1:11434}
unit=${OLLAMA_UNIT:-ollama.service}
folder=${SYSTEMD_FOLDER:-/etc/systemd/system}

whole_number='^[1-9][0-9]{0,3}$'
host_and_port='^[]A-Za-z0-9.:_[-]+:[0-9]{1,5}$'
[[ $parallel =~ $whole_number ]] || fail "OLLAMA_NUM_PARALLEL must be a number from 1 to 9999, not '$parallel'"
[[ $loaded =~ $whole_number ]] || fail "OLLAMA_MAX_LOADED_MODELS must be a number from 1 to 9999, not '$loaded'"
[[ $keep_alive =~ ^(-1|0|([0-9]+(ms|s|m|h))+)$ ]] || fail "OLLAMA_KEEP_ALIVE must be like 5m, 1h, 0 or -1, not '$keep_alive'"
[[ $listen =~ $host_and_port ]] || fail "OLLAMA_LISTEN must be HOST:PORT, not '$listen'"
[[ $unit =~ ^[A-Za-z0-9@._-]+\.service$ ]] || fail "OLLAMA_UNIT must be the name of a service, not '$unit'"

drop_in=$folder/$unit.d/50-agent-platform.conf
content="# Written by ollama_setup.sh; it replaces this file when it is run again.
[Service]
Environment=OLLAMA_HOST=$listen
Environment=OLLAMA_NUM_PARALLEL=$parallel
Environment=OLLAMA_MAX_LOADED_MODELS=$loaded
Environment=OLLAMA_KEEP_ALIVE=$keep_alive"

if $dry_run; then
    echo "would write $drop_in:"
    echo "$content"
    exit 0
fi

systemctl=${SYSTEMCTL:-systemctl}
command -v "$systemctl" >/dev/null || fail "there is no systemctl here: this script is for machines with systemd"
"$systemctl" cat "$unit" >/dev/null 2>&1 || fail "there is no $unit: install Ollama first, or name its unit with OLLAMA_UNIT"

if [ -f "$drop_in" ] && [ "$(cat "$drop_in")" = "$content" ]; then
    echo "$drop_in is as it should be"
    "$systemctl" is-active --quiet "$unit" || "$systemctl" start "$unit"
else
    mkdir -p "$(dirname "$drop_in")" || fail "cannot write below $folder: run it as root (sudo)"
    # Beside it first, so that systemd never reads half a file.
    unfinished=$(mktemp "$drop_in.XXXXXX") || fail "cannot write below $folder: run it as root (sudo)"
    trap 'rm -f "$unfinished"' EXIT
    echo "$content" > "$unfinished"
    chmod 0644 "$unfinished"
    mv "$unfinished" "$drop_in"
    "$systemctl" daemon-reload
    "$systemctl" restart "$unit"
    echo "wrote $drop_in and restarted $unit"
fi

# What is listened on everywhere is reached here by the loopback address.
address=${listen/#0.0.0.0:/127.0.0.1:}
for _ in $(seq "${OLLAMA_WAIT_SECONDS:-30}"); do
    if curl --silent --fail --max-time 2 "http://$address/api/version" >/dev/null; then
        echo "Ollama answers at http://$address"
        echo "For the workers: OLLAMA_HOST=http://$address OLLAMA_NUM_PARALLEL=$parallel OLLAMA_MAX_LOADED_MODELS=$loaded OLLAMA_KEEP_ALIVE=$keep_alive"
        exit 0
    fi
    sleep 1
done
fail "Ollama does not answer at http://$address; see: journalctl -u $unit"
