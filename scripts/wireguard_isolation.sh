#!/usr/bin/env bash
# Lets the peers of a WireGuard interface reach only the server among them, and never each other, over IPv4 and IPv6.
# Runs on the machine that forwards between the peers (docs/wireguard.md). Safe to run again: it replaces its own rules
# in one transaction, and changes no others.
#
#   sudo WG_INTERFACE=wg0 WG_SUBNET=10.0.0.0/24 WG_SERVER=10.0.0.10 scripts/wireguard_isolation.sh up|down|status
#
# WG_SUBNET6 and WG_SERVER6 name the same of IPv6; without them peers reach nobody over IPv6. `status` answers 1 when
# the rules are not there.
#
# It uses nftables, with a table of its own; where there is none, iptables and ip6tables with a chain of its own. Neither
# opens anything: what these rules let through, the machine's own rules may still refuse.
set -euo pipefail

fail() { echo "wireguard_isolation: $*" >&2; exit 1; }

interface=${WG_INTERFACE:-wg0}
subnet=${WG_SUBNET:-10.0.0.0/24}
server=${WG_SERVER:-10.0.0.10}
subnet6=${WG_SUBNET6:-}
server6=${WG_SERVER6:-}

[[ $interface =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$ ]] || fail "WG_INTERFACE must be the name of an interface, not '$interface'"
octet='(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])'
address="($octet\\.){3}$octet"
[[ $subnet =~ ^$address/([1-9]|[12][0-9]|3[0-2])$ ]] || fail "WG_SUBNET must be like 10.0.0.0/24, not '$subnet'"
[[ $server =~ ^$address$ ]] || fail "WG_SERVER must be an IPv4 address, not '$server'"
as_number() { local IFS=. parts; read -ra parts <<<"$1"; echo $(((10#${parts[0]} << 24) + (10#${parts[1]} << 16) + (10#${parts[2]} << 8) + 10#${parts[3]})); }
shift_by=$((32 - ${subnet#*/}))
(($(as_number "$server") >> shift_by == $(as_number "${subnet%/*}") >> shift_by)) || fail "WG_SERVER $server is not in WG_SUBNET $subnet"
if [ -n "$subnet6$server6" ]; then
    [[ $subnet6 =~ ^[0-9A-Fa-f:]*:[0-9A-Fa-f:]*/[0-9]{1,3}$ ]] || fail "WG_SUBNET6 must be like fd00:10::/64, not '$subnet6'; set it together with WG_SERVER6"
    [[ $server6 =~ ^[0-9A-Fa-f:]*:[0-9A-Fa-f:]*$ ]] || fail "WG_SERVER6 must be an IPv6 address, not '$server6'; set it together with WG_SUBNET6"
fi

# Each interface has rules of its own, so that one machine may forward for several.
table=wg_peers chain=WG_PEERS
[ "$interface" = wg0 ] || { table=wg_peers_$interface chain=WG_PEERS_$interface; }

has_nft() { command -v nft >/dev/null && nft list tables >/dev/null 2>&1; }

# --- nftables ---

# A flow that was open before the rules came is established too, so only what the server sends is let through by that.
nft_rules() {
    echo "table inet $table {"
    echo "chain forward {"
    # Before the machine's own rules, so that what they drop is counted here too.
    echo "type filter hook forward priority -10; policy accept;"
    echo "iifname != \"$interface\" return"
    echo "oifname != \"$interface\" return"
    echo "ip saddr $subnet ip daddr $server accept"
    echo "ip saddr $server ip daddr $subnet ct state established,related accept"
    if [ -n "$server6" ]; then
        echo "ip6 saddr $subnet6 ip6 daddr $server6 accept"
        echo "ip6 saddr $server6 ip6 daddr $subnet6 ct state established,related accept"
    fi
    echo "limit rate 10/minute burst 5 packets log prefix \"$table dropped: \""
    echo "counter drop"
    echo "}"
    echo "}"
}

nft_up() {
    { echo "table inet $table"; echo "delete table inet $table"; nft_rules; } | nft -f - || fail "nft refused the rules; nothing was changed"
}

nft_down() {
    { echo "table inet $table"; echo "delete table inet $table"; } | nft -f - || fail "nft could not remove the table inet $table"
}

nft_is_up() { nft list table inet "$table" >/dev/null 2>&1; }

# --- iptables ---

jump="-i $interface -o $interface -j $chain"

# How often the jump stands in FORWARD.
jumps() { "$1" -w -S FORWARD | grep -cFx -- "-A FORWARD $jump" || true; }

# What takes the jump out, for iptables-restore.
without_jump() {
    local left
    for ((left = $(jumps "$1"); left > 0; left--)); do echo "-D FORWARD $jump"; done
}

# The program, and the subnet and the server of its protocol. RETURN: the machine's own rules go on. The jump stands
# first, and once.
iptables_up() {
    local program=$1 subnet=$2 server=$3
    {
        echo "*filter"
        echo ":$chain - [0:0]"
        if [ -n "$server" ]; then
            echo "-A $chain -s $subnet -d $server -j RETURN"
            echo "-A $chain -s $server -d $subnet -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
        fi
        echo "-A $chain -m limit --limit 10/minute --limit-burst 5 -j LOG --log-prefix \"$table dropped: \""
        echo "-A $chain -j DROP"
        without_jump "$program"
        echo "-I FORWARD 1 $jump"
        echo COMMIT
    } | "$program-restore" -w --noflush || fail "$program refused the rules; nothing of it was changed"
}

iptables_down() {
    local program=$1
    iptables_is_up "$program" || return 0
    {
        echo "*filter"
        without_jump "$program"
        echo "-F $chain"
        echo "-X $chain"
        echo COMMIT
    } | "$program-restore" -w --noflush || fail "$program could not remove the chain $chain"
}

iptables_is_up() { command -v "$1" >/dev/null && "$1" -w -S "$chain" >/dev/null 2>&1; }

# --- what is asked for ---

case "${1:-}" in
    up | down | status) ;;
    *) fail "say up, down or status; all else comes from the environment (see the first lines)" ;;
esac
[ "$(id -u)" = 0 ] || fail "only root may see and change the rules of the firewall: sudo $0 $1"
has_nft || command -v iptables >/dev/null || fail "there is neither nft nor iptables here: install nftables"

case $1 in
    up)
        if has_nft; then
            nft_up
            # What this script left there before nft was installed.
            iptables_down iptables
            iptables_down ip6tables
            echo "peers of $interface reach only $server${server6:+ and $server6} (nftables, table inet $table)"
        else
            command -v ip6tables >/dev/null || fail "there is iptables and no ip6tables: peers could reach each other over IPv6"
            iptables_up ip6tables "$subnet6" "$server6"
            iptables_up iptables "$subnet" "$server"
            echo "peers of $interface reach only $server${server6:+ and $server6} (iptables, chain $chain)"
        fi
        ;;
    down)
        if has_nft; then nft_down; fi
        iptables_down iptables
        iptables_down ip6tables
        echo "peers of $interface may reach each other, as far as the machine's own rules let them"
        ;;
    status)
        if has_nft && nft_is_up; then
            nft list table inet "$table"
        elif iptables_is_up iptables && iptables_is_up ip6tables && [ "$(jumps iptables)" -gt 0 ] && [ "$(jumps ip6tables)" -gt 0 ]; then
            iptables -w -v -n -x -L "$chain"
            ip6tables -w -v -n -x -L "$chain"
        else
            echo "the rules of $interface are not there: peers may reach each other" >&2
            exit 1
        fi
        ;;
esac
