# shellcheck shell=bash
# The network of slurm/devcluster. It only defines functions.
#
# `--net shared`: all nodes use this machine's network, at 127.0.0.1.
# `--net separate`: each node has a network namespace with one cable (a veth pair) to a bridge, like machines on a switch.
# The controller's address is on the bridge. The namespace of a node ends with the node's last process.

SUBNET='' BRIDGE=''
name_network() {  # from the port, so that clusters of other ports have other names
  SUBNET=198.18.$((PORT / 500))  # 198.18.0.0/15 is reserved for tests of networks
  BRIDGE=fdc$PORT
}

node_address() { if [ "$NET" = separate ]; then echo "$SUBNET.$((10 + ${1#node}))"; else echo 127.0.0.1; fi; }
head_address() { if [ "$NET" = separate ]; then echo "$SUBNET.1"; else echo 127.0.0.1; fi; }
address_of() { if [ "$1" = controller ]; then head_address; else node_address "$1"; fi; }
cable() { echo "f${PORT}n${1#node}"; }  # NODE: the end of its cable that is in the bridge

own_name() { local name; name=$(hostname); echo "${name%%.*}"; }  # hostname -s fails if the name has no address

# Slurm's daemons listen at the address of their own name alone (NoInAddrAny). Which one /etc/hosts and DNS have for
# this machine's name does not matter: the controller and the nodes see this file instead.
print_hosts() {
  local node own
  own=$(own_name)
  echo "$(head_address) $own $(hostname)"
  for node in $(node_names); do echo "$(node_address "$node") $node"; done
  awk -v a="$own" -v b="$(hostname)" '{
    names = ""
    for (i = 2; i <= NF && $i !~ /^#/; i++) if ($i != a && $i != b) names = names " " $i
    if (names && $1 !~ /^#/) print $1 names
  }' /etc/hosts
}

only_loopback() {  # false if it cannot be known
  command -v ip >/dev/null && [ -z "$(ip -4 -o address show | awk '$2 != "lo"')" ]
}

# Older slurmdbd ends if the machine has no other IPv4 address than those of the loopback interface.
needs_bridge() { [ "$NET" = separate ] || { [ "$ACCOUNTING" = yes ] && only_loopback; }; }

check_network() {
  local used
  needs_bridge || return 0
  command -v ip >/dev/null || die "no command ip here: install the package iproute2"
  [ "$EUID" = 0 ] || [ "$NET" = shared ] || die "--net separate needs root"
  [ "$EUID" = 0 ] || die "this machine has no IPv4 address except those of the loopback interface, and slurmdbd needs" \
    "one: run it as root, or with --no-accounting"
  ! ip link show "$BRIDGE" >/dev/null 2>&1 || return 0
  used=$(ip -4 route show root "$SUBNET.0/24")
  [ -z "$used" ] || die "the network $SUBNET.0/24 is in use here ($used): choose another --port"
}

start_bridge() {
  needs_bridge || return 0
  if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
    ip link add "$BRIDGE" type bridge || die "this kernel has no bridges (CONFIG_BRIDGE)"
    ip address add "$SUBNET.1/24" dev "$BRIDGE"
  fi
  ip link set "$BRIDGE" up
  mkdir -p "$DIR/net"
}

stop_bridge() {  # the cables of running nodes have gone with the nodes
  rm -rf "$DIR/net"
  ! command -v ip >/dev/null || ip link delete "$BRIDGE" 2>/dev/null || true
}

plug_in() {  # NODE: give its namespace a cable
  local pid='' tries index=${1#node}
  for ((tries = 0; tries < 200; tries++)); do
    if pid=$(first_process "$1") && [ -n "$pid" ]; then break; fi
    sleep 0.05
  done
  unplug "$1"
  ip link add "$(cable "$1")" type veth peer name eth0 netns "$pid" \
    address "$(printf '02:fd:%02x:%02x:00:%02x' $((PORT / 256)) $((PORT % 256)) "$index")" ||
    die "this kernel cannot connect $1 to the bridge (CONFIG_VETH)"
  ip link set "$(cable "$1")" master "$BRIDGE" up
  apply_cuts "$1"
}

unplug() { ip link delete "$(cable "$1")" 2>/dev/null || true; }  # NODE

# --- Cuts. A file in $DIR/net per cut: `node0.all`, `controller+node0`, `node0+node1`; `node0.slow` has netem's words.

at() {  # NODE COMMAND...: in the node's network; `controller` is this machine
  local pid who=$1; shift
  if [ "$who" = controller ]; then "$@"; return; fi
  pid=$(first_process "$who") && [ -n "$pid" ] || return 0  # it has no power
  nsenter --net --target "$pid" "$@"
}

device_of() { if [ "$1" = controller ]; then echo "$BRIDGE"; else echo eth0; fi; }

# Packets to a hardware address that does not exist get lost without an answer, as behind a broken cable.
lose_packets() {  # FROM TO
  at "$1" ip neighbour replace "$(address_of "$2")" lladdr 02:00:00:00:00:01 nud permanent dev "$(device_of "$1")"
}
deliver_packets() {  # FROM TO
  at "$1" ip neighbour delete "$(address_of "$2")" dev "$(device_of "$1")" 2>/dev/null || true
}

pair_file() {  # A B: the same name for B A
  if [ "$1" = controller ] || { [ "$2" != controller ] && [ "${1#node}" -lt "${2#node}" ]; }; then
    echo "$1+$2"
  else
    echo "$2+$1"
  fi
}

others_in_cuts() {  # NODE: the other ends of its cuts
  local file name
  for file in "$DIR"/net/*+*; do
    name=${file##*/}
    case $name in "$1+"*) echo "${name#*+}" ;; *"+$1") echo "${name%+*}" ;; esac
  done
}

apply_cuts() {  # NODE: after its power is back
  local other
  [ ! -e "$DIR/net/$1.all" ] || ip link set "$(cable "$1")" down
  for other in $(others_in_cuts "$1"); do lose_packets "$1" "$other"; done
  # shellcheck disable=SC2046  # several words
  [ ! -e "$DIR/net/$1.slow" ] || delay $1 $(cat "$DIR/net/$1.slow")
}

cut_pair() {  # A B
  touch "$DIR/net/$(pair_file "$1" "$2")"
  lose_packets "$1" "$2"
  lose_packets "$2" "$1"
}

heal_pair() {  # A B
  rm -f "$DIR/net/$(pair_file "$1" "$2")"
  deliver_packets "$1" "$2"
  deliver_packets "$2" "$1"
}

cut_node() {  # NODE FROM
  local node
  if [ "$1" = controller ] && [ "$2" = all ]; then
    for node in $(node_names); do cut_pair controller "$node"; done
  elif [ "$2" = all ]; then
    touch "$DIR/net/$1.all"
    ip link set "$(cable "$1")" down 2>/dev/null || true  # without power it has no cable
  else
    cut_pair "$1" "$2"
  fi
}

heal_node() {  # NODE
  local other
  for other in $(others_in_cuts "$1"); do heal_pair "$1" "$other"; done
  [ "$1" != controller ] || return 0
  rm -f "$DIR/net/$1.all" "$DIR/net/$1.slow"
  ip link set "$(cable "$1")" up 2>/dev/null || true
  tc qdisc delete dev "$(cable "$1")" root 2>/dev/null || true
  at "$1" tc qdisc delete dev eth0 root 2>/dev/null || true
}

delay() {  # NODE NETEM_WORDS...: in both directions
  local node=$1; shift
  tc qdisc replace dev "$(cable "$node")" root netem "$@" && at "$node" tc qdisc replace dev eth0 root netem "$@"
}

slow_node() {  # NODE DELAY LOSS
  local words=() problem
  [ -z "$2" ] || words+=(delay "$2")
  [ -z "$3" ] || words+=(loss "$3")
  command -v tc >/dev/null || die "no command tc here: install the package iproute2"
  running "slurmd.$1" || die "$1 has no power: run 'devcluster start-node $1' first"
  if ! problem=$(delay "$1" "${words[@]}" 2>&1); then
    die "this kernel cannot delay packets: $(echo "$problem" | tail -n 1) It needs netem (CONFIG_NET_SCH_NETEM)"
  fi
  echo "${words[@]}" >"$DIR/net/$1.slow"
}

print_cuts() {
  local file name
  for file in "$DIR"/net/*; do
    name=${file##*/}
    case $name in
      *.all) say "${name%.all} is cut off from all" ;;
      *.slow) say "${name%.slow} is slow: $(cat "$file")" ;;
      *+*) say "${name#*+} is cut off from ${name%+*}" ;;
    esac
  done
}
