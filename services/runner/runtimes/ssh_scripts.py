"""What runs on a machine: POSIX sh, with Linux's /proc and util-linux. Values come as arguments, never inside of a text.

Each batch has a folder there, `~/.aibrix-batch/<batch>/`; those that share an engine, one after another, have one together:

- `launch`  number and mark of the launch that the rest belongs to: a launch with a lower number changes nothing any more
- `process` pid and start time of the process that began it all; a pid that was given to somebody else is never signalled
- `exit`    its exit status, once it ended by itself
- `phase`   what it is doing, until it is an engine
- `key`     the API key of this launch, and nothing else
- `log`     what it said; `log.old` is what came before the log was cut

Beside the folders, for all batches of the machine:

- `.lock`   held while one of these scripts changes something, and free whenever its holder is gone
- `.ended`  marks of launches that are over: a call of one that comes late, or that its own end overtook, starts nothing
"""

from __future__ import annotations

# Bytes of the log above which it is cut, and how many of the last ones are kept then.
LOG_BYTES = 64 * 1024 * 1024
KEPT_BYTES = 1024 * 1024
TAIL_LINES = 40
TAIL_BYTES = 16 * 1024

# Status of a script that will not do better next time, and of one that waited too long for another; 1 is for the rest.
HOPELESS = 3
BUSY = 4
LOCK_S = 30

# Results, one a line on standard output: a word, and perhaps a value.
COMMON = (
    f"LOCK_S={LOCK_S}"
    + """
set -uf
umask 077
PATH=$PATH:$HOME/.local/bin
root=$HOME/.aibrix-batch
dir=$root/$1
pid=
start=
number=0
mark=

say() { printf '%s\\n' "$1"; }
refuse() { printf '%s\\n' "$1" >&2; exit 1; }

# put FILE TEXT
put() { printf '%s\\n' "$2" >"$dir/$1" || refuse "nothing can be written to $dir: is the disk full?"; }

# started PID: the moment it was started, in ticks since boot. Nothing if there is no such process.
started() {
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
  set -- ${stat##*) }
  case $1 in Z | X) ;; *) say "${20}" ;; esac
}

# session: pids of the session that our process began, it included, if it is still ours.
session() {
  [ -n "$pid" ] || return 0
  now=$(started "$pid")
  [ -z "$now" ] || [ "$now" = "$start" ] || return 0
  set +f
  for each in /proc/[0-9]*; do
    { read -r stat <"$each/stat"; } 2>/dev/null || continue
    set -- ${stat##*) }
    # A process may have any name, also one that looks like something else here.
    [ $# -ge 20 ] || continue
    [ "$4" = "$pid" ] && [ "${20}" -ge "$start" ] || continue
    case $1 in Z | X) ;; *) say "${each#/proc/}" ;; esac
  done
  set -f
}

# members: the session, and what left it but has our variable in its environment, as workers of an engine may.
members() {
  {
    session
    set +f
    grep -lsF "BATCH_ENGINE_FOLDER=$dir/" /proc/[0-9]*/environ | while IFS=/ read -r _ _ each _; do say "$each"; done
  } | sort -u
}

recall() {
  pid= start= number=0 mark=
  { read -r number mark <"$dir/launch"; } 2>/dev/null || number=0
  { read -r pid start <"$dir/process"; } 2>/dev/null || pid=
}

# end SECONDS: all members, first asked, then killed.
end() {
  left=$(members)
  [ -n "$left" ] || return 0
  kill -s TERM $left 2>/dev/null
  tries=$(($1 * 5))
  while left=$(members) && [ -n "$left" ] && [ "$tries" -gt 0 ]; do
    sleep 0.2
    tries=$((tries - 1))
  done
  tries=50
  while left=$(members) && [ -n "$left" ] && [ "$tries" -gt 0 ]; do
    kill -s KILL $left 2>/dev/null
    sleep 0.1
    tries=$((tries - 1))
  done
  [ -z "$left" ] || refuse "these processes cannot be ended:" $left
}

lock() {
  for needed in flock setsid; do
    command -v "$needed" >/dev/null || { say "$needed is not installed on the machine" >&2; exit 3; }
  done
  [ -d "$root" ] || mkdir -p "$root" || refuse "$root cannot be made: is the disk full?"
  (: >>"$root/.lock") || exit 1
  exec 9>>"$root/.lock"
  flock -w "$LOCK_S" 9 || { say "another command on the machine does not end" >&2; exit 4; }
}

# retire MARK: its calls change nothing any more. On a full disk nothing new can be started either.
retire() { [ -z "$1" ] || printf '\\n%s\\n' "$1" >>"$root/.ended"; } 2>/dev/null

# process: `running`, `exited STATUS`, or `absent`.
process() {
  now=
  [ -z "$pid" ] || now=$(started "$pid")
  if [ -n "$now" ] && [ "$now" = "$start" ]; then
    say running
  elif { read -r code <"$dir/exit"; } 2>/dev/null; then
    say "exited $code"
  elif [ -n "$pid" ]; then
    say "exited 137"
  else
    say absent
  fi
}

# alive: whether there is an engine that may be taken over.
alive() { [ "$(process)" = running ]; }

# detach COMMAND...: in a session of its own, without our terminal, our pipes and our connection. It writes down who it
# is before it begins, and holds the lock until then.
detach() {
  rm -f "$dir/process" "$dir/exit"
  setsid sh -uc '
    read -r stat <"/proc/$$/stat"
    dir=$1
    shift
    fields=${stat##*) }
    start=$(set -f; set -- $fields; printf %s "${20}")
    printf "%s %s\\n" "$$" "$start" >"$dir/process.new" && mv "$dir/process.new" "$dir/process" || exit 1
    exec 9>&-
    "$@"
    printf "%s\\n" "$?" >"$dir/exit.new" && mv "$dir/exit.new" "$dir/exit"
  ' sh "$dir" "$@" </dev/null >>"$dir/log" 2>&1 &
  tries=100
  until [ -s "$dir/process" ] || [ "$tries" -eq 0 ]; do
    sleep 0.05
    tries=$((tries - 1))
  done
  [ -s "$dir/process" ] || refuse "the engine's process could not be recorded: $(tail -c 200 "$dir/log")"
}

# begin NUMBER MARK: whether this launch is to be started now. Ends what an earlier one left; with $adopt it takes over an
# engine that runs, and whoever had it changes nothing any more.
begin() {
  lock
  recall
  if grep -qsxF "$2" "$root/.ended"; then
    say replaced
    exit 0
  fi
  if [ "$number" = "$1" ] && [ "$mark" = "$2" ] && [ -n "$pid" ]; then
    return 1
  fi
  if [ -n "$adopt" ]; then
    if alive; then
      retire "$mark"
      put launch "$1 $2"
      return 1
    fi
  elif [ "$number" -gt "$1" ] || { [ "$number" = "$1" ] && [ "$mark" != "$2" ]; }; then
    say replaced
    exit 0
  fi
  end 5
  [ "$mark" = "$2" ] || retire "$mark"
  mkdir -p "$dir" || refuse "$dir cannot be made: is the disk full?"
  rm -f "$dir/process" "$dir/exit" "$dir/phase" "$dir/log" "$dir/log.old" "$dir/key"
  pid=
  put key "$key"
  put log "launch $1"
  put launch "$1 $2"
}

report() { printf 'key %s\\n' "$(cat "$dir/key")"; }

# shorten BYTES KEPT: the log, in place, since its writer appends.
shorten() {
  size=$(wc -c 2>/dev/null <"$dir/log") || return 0
  [ "$size" -gt "$1" ] || return 0
  tail -c "$2" "$dir/log" >"$dir/log.old" 2>/dev/null
  : >"$dir/log"
}
"""
)

# BATCH NUMBER MARK PROGRAM ARGUMENTS...; $key
START_PROCESS = (
    COMMON
    + """
command -v "$4" >/dev/null || { say "$4 is not installed on the machine" >&2; exit 3; }
if begin "$2" "$3"; then
  shift 3
  VLLM_API_KEY=$key
  BATCH_ENGINE_FOLDER=$dir/
  export VLLM_API_KEY BATCH_ENGINE_FOLDER
  detach "$@"
fi
recall
process
report
"""
)

# BATCH NUMBER MARK LOG_BYTES KEPT_BYTES
PROCESS_STATE = (
    COMMON
    + """
recall
if [ "$number" != "$2" ] || [ "$mark" != "$3" ]; then
  say replaced
  exit 0
fi
process
shorten "$4" "$5"
"""
)

# BATCH LINES BYTES. The last bytes of everything, so that only the first word may have lost its beginning.
PROCESS_LOG = (
    COMMON
    + """
report 2>/dev/null
{ tail -c "$3" "$dir/log.old"; tail -c "$3" "$dir/log"; } 2>/dev/null | tail -c "$3" | tail -n "$2"
"""
)

# BATCH NUMBER MARK SECONDS
STOP_PROCESS = (
    COMMON
    + """
[ -d "$root" ] || mkdir -p "$root" || exit 0
retire "$3"
lock
recall
if [ "$number" != "$2" ] || [ "$mark" != "$3" ]; then
  exit 0
fi
end "$4"
rm -rf "$dir"
"""
)

# Docker as this user, or as root without a password. $docker is split into words on purpose.
DOCKER = """
find_docker() {
  if answers docker; then
    docker=docker
    return
  fi
  why=$answer
  answers sudo -n docker || refuse "Docker does not answer: $why; by sudo: $answer"
  docker='sudo -n docker'
}

# answers DOCKER...; why not is in $answer. A daemon that hangs does not hold us, nor one of the connection's few sessions.
answers() {
  answer=$(timeout 10 "$@" version 2>&1)
  case $? in
    0) return 0 ;;
    124) answer='no answer in 10 s' ;;
    *) answer=$(say "$answer" | tail -n 1 | cut -c 1-80) ;;
  esac
  return 1
}

# container NAME: `pulling` and `starting` before there is one; then `running` or `exited STATUS`. What failed before
# there was one has its step behind the status.
container() {
  step=
  { read -r step <"$dir/phase"; } 2>/dev/null
  before=$(process)
  case $before in
    running) say "${step:-starting}" ;;
    'exited 0')
      if ! state=$(timeout 10 $docker inspect -f '{{.State.Running}} {{.State.ExitCode}}' "$1" 2>/dev/null); then
        # Only a container that is known not to be there has ended.
        why=$(timeout 10 $docker inspect "$1" 2>&1 >/dev/null)
        case $why in
          *[Nn]'o such '*) state='false 137' ;;
          *) refuse "Docker does not say how the container is: $why" ;;
        esac
      fi
      case $state in
        'true '*) say running ;;
        *) say "exited ${state##* }" ;;
      esac
      ;;
    *) say "$before $step" ;;
  esac
}
"""

# BATCH NUMBER MARK IMAGE NAME PORT ARGUMENTS...; $key
START_CONTAINER = (
    COMMON
    + DOCKER
    + """
find_docker
name=$5
alive() { [ "$(container "$name")" = running ]; }
if begin "$2" "$3"; then
  label=aibrix.batch=$1
  image=$4
  port=$6
  shift 6
  $docker ps -aq --filter "label=$label" | while read -r old; do
    $docker rm -f "$old" >/dev/null || refuse "an earlier container of this batch cannot be removed"
  done || exit 1
  put env "VLLM_API_KEY=$key"
  put phase pulling
  mkdir -p "$HOME/.cache/huggingface" || exit 1
  detach sh -uc '
    docker=$1
    image=$2
    phase=$3
    shift 3
    if ! $docker pull "$image"; then
      # A registry that cannot be reached does not matter if the image is there already.
      $docker image inspect "$image" >/dev/null || exit 125
    fi
    echo starting >"$phase"
    exec $docker run "$@"
  ' sh "$docker" "$image" "$dir/phase" -d --name "$name" --label "$label" --gpus all --ipc=host \\
    -p "127.0.0.1:$port:8000" --env-file "$dir/env" -v "$HOME/.cache/huggingface:/root/.cache/huggingface" \\
    --log-driver json-file --log-opt max-size=32m --log-opt max-file=2 "$image" "$@"
fi
recall
container "$name"
report
"""
)

# BATCH NUMBER MARK LOG_BYTES KEPT_BYTES NAME
CONTAINER_STATE = (
    COMMON
    + DOCKER
    + """
recall
if [ "$number" != "$2" ] || [ "$mark" != "$3" ]; then
  say replaced
  exit 0
fi
find_docker
container "$6"
shorten "$4" "$5"
"""
)

# BATCH LINES BYTES NAME
CONTAINER_LOG = (
    COMMON
    + DOCKER
    + """
find_docker
report 2>/dev/null
{ tail -c "$3" "$dir/log"; $docker logs --tail "$2" "$4" 2>&1; } 2>/dev/null | tail -c "$3" | tail -n "$2"
"""
)

# BATCH NUMBER MARK SECONDS
STOP_CONTAINER = (
    COMMON
    + DOCKER
    + """
[ -d "$root" ] || mkdir -p "$root" || exit 0
retire "$3"
lock
recall
if [ "$number" != "$2" ] || [ "$mark" != "$3" ]; then
  exit 0
fi
end "$4"
find_docker
$docker ps -aq --filter "label=aibrix.batch=$1" | while read -r old; do
  $docker rm -f "$old" >/dev/null || refuse "the container cannot be removed"
done || exit 1
rm -rf "$dir"
"""
)
