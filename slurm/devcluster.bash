# shellcheck shell=bash
# The parts of slurm/devcluster: processes, configuration, daemons. It only defines functions.

# --- Processes. A pid file has pid and start time: after a crash another process may have the same pid.

started_at() {  # PID: in clock ticks since boot; fails if the process is gone or a zombie
  local stat fields=()
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  read -ra fields <<<"${stat##*) }"
  [ "${fields[0]}" != Z ] && echo "${fields[19]}"
}

alive() {  # PID_FILE
  local pid start
  { read -r pid start <"$1"; } 2>/dev/null && [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ]
}

running() { alive "$DIR/run/$1.pid"; }

anything_alive() {  # FOLDER
  local file; for file in "$1"/run/*.pid; do if alive "$file"; then return 0; fi; done
  return 1
}

start() {  # DAEMON COMMAND...: without the caller's pipes, terminal, working directory and process group
  local name=$1; shift
  (
    cd /
    for fd in "/proc/$BASHPID/fd"/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ]; then exec {fd}>&-; fi
    done
    exec setsid env --default-signal "$@"  # bash ignores SIGINT in the background, and jobs would inherit that
  ) </dev/null >"$DIR/log/$name.out" 2>&1 &
  echo "$! $(started_at $!)" >"$DIR/run/$name.pid"
}

wait_for() {  # SECONDS DAEMON COMMAND...: until the command succeeds
  local deadline=$((SECONDS + $1)) name=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    if ! running "$name" || [ $SECONDS -ge $deadline ]; then broken "$name"; fi
    sleep 0.1
  done
}

broken() {  # DAEMON: end with the last lines of its log
  local words; words=$(tail -qn 2 "$DIR/log/$1.log" "$DIR/log/$1.out" 2>/dev/null | tr '\n' ' ' || true)
  echo "devcluster: $1 does not answer; see $DIR/log, then run 'devcluster down --dir $DIR'; end of its log: $words" >&2
  exit 3
}

ended_within() {  # SECONDS PID_FILE
  local tries=$(($1 * 20))
  while alive "$2"; do
    [ $((tries--)) -gt 0 ] || return 1
    sleep 0.05
  done
}

stop() {  # DAEMON: with SIGTERM, then with SIGKILL
  local file=$DIR/run/$1.pid pid
  if alive "$file"; then
    read -r pid _ <"$file"
    kill -TERM "$pid"
    ended_within 30 "$file" || kill -KILL "$pid"
    ended_within 10 "$file" || die "process $pid ($1) does not end"
  fi
  rm -f "$file"
}

# --- Configuration

node_names() { local i; for ((i = 0; i < NODES; i++)); do echo "node$i"; done; }

print_slurm_conf() {
  local expire='' gres='' i
  if [ "$TIMINGS" = quick ]; then
    expire=,cred_expire=5  # wait of a requeued job; Slurm's default is two minutes
    cat <<CONF
# Jobs start within a second of sbatch. Slurm checks time limits, --signal and dead nodes only every 30 s.
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_continue,sched_min_interval=100000
KillWait=5
SlurmdTimeout=10
MinJobAge=60
CONF
  fi
  [ "$ACCOUNTING" = no ] || cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$(head_address)
AccountingStoragePort=$((PORT + 1))
# AuthInfo has no effect on this connection.
AccountingStoragePass=$DIR/munge/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=limits,qos
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
CONF
  cat <<CONF
ClusterName=devcluster
# The name must be this machine's own, with any address.
SlurmctldHost=$(own_name)($(head_address))
SlurmctldPort=$PORT
SrunPortRange=$((PORT + 100))-$((PORT + 499))
SlurmUser=$USER_NAME
SlurmdUser=$USER_NAME
AuthInfo=socket=$DIR/munge/munge.socket$expire
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/%n
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/%n/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Use the nodes of this file, not the real hardware.
SlurmdParameters=config_overrides
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Send the signal of --signal before a preemption. Otherwise the batch script is killed without one.
SlurmctldParameters=preempt_send_user_signal
MaxArraySize=$MAX_ARRAY_SIZE
MaxJobCount=20000
ReturnToService=2
CONF
  [ "$GPUS" = 0 ] || gres=Gres=gpu:$GPU_TYPE:$GPUS
  for ((i = 0; i < NODES; i++)); do
    echo "NodeName=node$i NodeAddr=$(node_address "node$i") Port=$((PORT + 10 + i)) CPUs=$CPUS Boards=1 SocketsPerBoard=1" \
      "CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM $gres"
  done
  cat <<CONF
PartitionName=DEFAULT Nodes=ALL MaxTime=7-0 DefaultTime=60 DefMemPerCPU=$((MEM / CPUS)) PreemptMode=OFF
PartitionName=a100 Default=YES PriorityTier=10
PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=debug MaxTime=5 DefaultTime=1 PriorityTier=20
PartitionName=closed State=DOWN
CONF
}

print_slurmdbd_conf() {
  cat <<CONF
DbdHost=localhost
DbdAddr=$(head_address)
DbdPort=$((PORT + 1))
SlurmUser=$USER_NAME
AuthInfo=socket=$DIR/munge/munge.socket
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/state/slurmdbd.pid
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 2))
StorageUser=slurm
CONF
}

configure() {
  local i
  print_slurm_conf >"$SLURM_CONF"
  # Daemons, and srun in jobs, see this file at the place of the other one. They listen at the address of their own name
  # alone. For srun on the login node this name may have an address that nodes cannot reach, such as 127.0.1.1.
  { cat "$SLURM_CONF"; echo CommunicationParameters=NoCtldInAddrAny,NoInAddrAny; } >"$DIR/conf/daemons.conf"
  (umask 077 && print_slurmdbd_conf >"$DIR/conf/slurmdbd.conf")  # slurmdbd refuses a file that others can read
  : >"$DIR/conf/gres.conf"
  for ((i = 0; i < GPUS; i++)); do  # Slurm sets CUDA_VISIBLE_DEVICES only if the GPU is a character device
    ln -sfn /dev/null "$DIR/dev/nvidia$i"
    echo "Name=gpu Type=$GPU_TYPE File=$DIR/dev/nvidia$i" >>"$DIR/conf/gres.conf"
  done
  # Slurm needs this setting from 23.11 on if there are no cgroups, and rejects it before.
  case $(slurmctld -V) in *" 2"[0-2].* | *" 23.02"*) ;; *) echo CgroupPlugin=disabled >"$DIR/conf/cgroup.conf" ;; esac
  print_hosts >"$DIR/conf/hosts"
  echo "export SLURM_CONF=$SLURM_CONF FURNACE_DEVCLUSTER=$DIR" >"$DIR/env.sh"
}

# --- Daemons, in the order of their start; a running one is left alone

start_munged() {
  ! running munged || return 0
  [ -s "$DIR/munge/key" ] || (umask 077 && head -c 128 /dev/urandom >"$DIR/munge/key")
  rm -f "$DIR"/munge/munge.socket*
  start munged munged --foreground --force --socket="$DIR/munge/munge.socket" --key-file="$DIR/munge/key" \
    --pid-file="$DIR/munge/pid" --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed"
  wait_for 10 munged munge -n -S "$DIR/munge/munge.socket"
}

start_mariadbd() {  # without users and grants: only this machine can reach it, and it contains only test jobs
  local common=(--no-defaults --user="$USER_NAME")
  ! running mariadbd || return 0
  if [ ! -d "$DIR/mysql" ]; then
    rm -rf "$DIR/mysql.new"
    mariadb-install-db "${common[@]}" --datadir="$DIR/mysql.new" --skip-test-db >"$DIR/log/mariadbd.out" 2>&1 ||
      broken mariadbd
    mv "$DIR/mysql.new" "$DIR/mysql"
  fi
  start mariadbd mariadbd "${common[@]}" --datadir="$DIR/mysql" --socket="$DIR/run/mariadb.sock" --skip-grant-tables \
    --bind-address=127.0.0.1 --port=$((PORT + 2)) --skip-name-resolve --performance-schema=0 \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=2 \
    --loose-innodb-snapshot-isolation=OFF  # slurmdbd of Slurm 26.05 refuses the default of MariaDB 11.8
  wait_for 90 mariadbd mariadb-admin --no-defaults --socket="$DIR/run/mariadb.sock" ping
  # slurmdbd would create it, and ends then with MariaDB's client library of Debian 13
  mariadb --no-defaults --socket="$DIR/run/mariadb.sock" -e 'CREATE DATABASE IF NOT EXISTS slurm_acct_db'
}

start_on_head() {  # DAEMON COMMAND...: with the hosts and the configuration of the daemons
  local name=$1; shift
  # shellcheck disable=SC2016  # the inner shell expands it
  start "$name" "${HEAD_NAMESPACES[@]}" sh -ec 'mount --bind "$1" /etc/hosts; mount --bind "$2" "$3"; shift 3; exec "$@"' \
    sh "$DIR/conf/hosts" "$DIR/conf/daemons.conf" "$SLURM_CONF" "$@"
}

start_slurmdbd() {  # finds its configuration beside $SLURM_CONF
  local user
  ! running slurmdbd || return 0
  start_on_head slurmdbd slurmdbd -D
  wait_for 90 slurmdbd sacctmgr -n show cluster
  # The controller needs its cluster here, and rejects jobs of users without account. Exit code 1: it exists already.
  sacctmgr -iQ add cluster devcluster >/dev/null || true
  sacctmgr -iQ add account devcluster >/dev/null || true
  for user in "$USER_NAME" ${SUDO_USER:-}; do sacctmgr -iQ add user "$user" account=devcluster >/dev/null || true; done
}

start_slurmctld() {
  ! running slurmctld || return 0
  start_on_head slurmctld slurmctld -D
  wait_for 30 slurmctld scontrol ping
}

# A node is a PID namespace. When its first process is killed, the kernel kills all its processes, like a power cut.
# It has its own hostname and /etc/hosts. For a user who is not root it is also a user namespace.
NAMESPACES=(unshare --pid --uts --mount --propagation slave --mount-proc --fork --kill-child)
HEAD_NAMESPACES=(unshare --mount --propagation slave)
if [ "$EUID" != 0 ]; then
  NAMESPACES+=(--user --map-current-user --keep-caps)
  HEAD_NAMESPACES+=(--user --map-current-user --keep-caps)
fi

start_node() {  # NODE
  local own_network=() address=''
  ! running "slurmd.$1" || return 0
  if [ "$NET" = separate ]; then own_network=(--net); address=$(node_address "$1"); fi
  mkdir -p "$DIR/$1"
  # shellcheck disable=SC2016  # the inner shell expands it; as the first process it reaps the orphans of jobs
  start "slurmd.$1" "${NAMESPACES[@]}" "${own_network[@]}" sh -ec '
    hostname "$1"
    mount --bind "$2" /etc/hosts
    mount --bind "$3" "$SLURM_CONF"
    [ -z "$4" ] || mount -t tmpfs hidden "$4"
    if [ -n "$5" ]; then
      tries=200
      until ip address add "$5/24" dev eth0 2>/dev/null; do tries=$((tries - 1)); [ $tries != 0 ]; sleep 0.05; done
      ip link set lo up
      ip link set eth0 up
    fi
    env --default-signal slurmd -D -N "$1" &
    wait' sh "$1" "$DIR/conf/hosts" "$DIR/conf/daemons.conf" "$HIDE" "$address"
  [ "$NET" = shared ] || plug_in "$1"
}

first_process() {  # NODE: its pid, outside of the namespace; fails if the node has no power
  local unshare first=''
  running "slurmd.$1" || return 1
  read -r unshare _ <"$DIR/run/slurmd.$1.pid"
  read -r first _ <"/proc/$unshare/task/$unshare/children" || true
  echo "$first"
}

kill_node() {  # NODE
  local file=$DIR/run/slurmd.$1.pid first
  if first=$(first_process "$1"); then
    # unshare waits for the first process of the namespace, which ends last
    kill -KILL "${first:-$(cut -d ' ' -f 1 "$file")}"
    ended_within 10 "$file" || die "the processes of $1 do not end"
  fi
  rm -f "$file"
  [ "$NET" = shared ] || unplug "$1"
}

answers() {  # NODE: whether the controller lists it as up
  local state
  state=$(sinfo -h -p a100 -n "$1" -o %T) && [ -n "$state" ] && [[ ! $state =~ [*]|down|unk ]]
}
