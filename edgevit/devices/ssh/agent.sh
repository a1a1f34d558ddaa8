# The part that runs on a board: tells what the board is, lets files come, runs them, leaves nothing.
#
# edgevit/devices/ssh/session.py sends it line by line to the board's sh, behind a line `name=edgevit-XXXXXXXX` and before
# its own calls of these functions. It needs what every Linux has: sh, cat, rm, mkdir, uname. Its stdin is its lifeline:
# when that ends, whoever asked is gone, and it cleans up. Out: EDGEVIT-FILE NAME, each with lines of content behind it;
# EDGEVIT-READY FOLDER, at first and whenever what was asked for is done; and last, when all is removed, EDGEVIT-DONE,
# with FOLDER if it could not be removed.
umask 077
exec 3<&0
home=$PWD
folder=${TMPDIR:-/tmp}/$name
running=
at= # before names, where a file is told more than once

clean() {
  trap "" HUP INT TERM PIPE
  [ -z "$running" ] || stop "$running"
  cd /
  rm -rf -- "$folder" 2>/dev/null
}

# A program, and all that it started if it leads a group of its own.
stop() {
  kill -9 "-$1" 2>/dev/null
  kill -9 "$1" 2>/dev/null
}

# What files hold, those that are there.
tell() {
  for path; do
    [ -f "$path" ] && [ -r "$path" ] || continue
    echo "EDGEVIT-FILE $at$path"
    cat "$path" 2>/dev/null
    echo
  done
}

# What a command says.
ask() {
  echo "EDGEVIT-FILE $at$1"
  shift
  "$@" 2>&1 || :
  echo
}

libc() { getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version; }

# What does not change.
machine() {
  ask machine uname -m
  ask kernel uname -sr
  ask libc libc
  ask bits getconf LONG_BIT
  ask emulator readlink /proc/thread-self/exe
  ask space df -P -k "$folder"
  tell /etc/os-release /proc/meminfo /proc/self/status /sys/firmware/devicetree/base/model
  cpu=/sys/devices/system/cpu
  tell $cpu/cpu0/cpufreq/scaling_governor $cpu/cpu0/cpufreq/cpuinfo_max_freq
  tell /sys/class/thermal/cooling_device*/type
}

# What does, told of one moment.
moment() {
  at=$1
  cpu=/sys/devices/system/cpu
  tell /proc/cpuinfo /proc/loadavg $cpu/cpu[0-9]*/cpufreq/scaling_cur_freq $cpu/cpu0/cpufreq/scaling_max_freq
  tell /sys/class/thermal/thermal_zone*/temp /sys/class/thermal/cooling_device*/cur_state
  tell $cpu/cpu[0-9]*/thermal_throttle/core_throttle_count
  firmware=/sys/devices/platform/soc/soc:firmware/get_throttled
  if [ -r $firmware ]; then tell $firmware; elif command -v vcgencmd >/dev/null; then ask $firmware vcgencmd get_throttled; fi
  at=
}

# A folder of its own.
receive() {
  mkdir "$folder" 2>/dev/null || { echo "EDGEVIT-FILE unwritable"; echo "${TMPDIR:-/tmp}"; echo; exit 1; }
  trap clean EXIT
  trap "exit 1" HUP INT TERM PIPE # the last one: nobody hears what it says
  machine
  moment ""
  cd "$folder" || exit 1
  echo "EDGEVIT-READY $folder"
}

# Do what comes line by line, and tell what came of it, until nobody is there any more.
obey() {
  while IFS= read -r word <&3; do
    eval "$word"
    cat ./*.told 2>/dev/null
    tell ./*.status ./*.err ./*.out
    rm -f ./*.told ./*.status ./*.err ./*.out
    echo "EDGEVIT-READY $folder"
  done
}

# PROGRAM ARGUMENTS...: one that finds the modules in the folder, and leaves nothing elsewhere.
python() {
  program=$1
  shift
  case $program in
  /*) ;;
  */*) program=$home/$program ;;
  esac
  export PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 TMPDIR="$folder"
  exec "$program" "$@"
}

# KIB PROGRAM ARGUMENTS...: one that may hold so much memory and no more, where the system has such a limit.
held() {
  ulimit -d "$1" 2>/dev/null || :
  shift
  exec "$@"
}

# STEP PROGRAM ARGUMENTS...: asleep until it ends or nobody is listening, for a measurement must not be disturbed.
run() {
  step=$1
  shift
  "$@" >"$step.out" 2>"$step.err" </dev/null &
  running=$!
  { while read -r word; do :; done; stop $running; rm -rf -- "$folder"; } <&3 >/dev/null 2>&1 &
  watching=$!
  wait $running
  status=$?
  running=
  kill -9 $watching # no trap that it has not left behind yet can catch this
  wait $watching 2>/dev/null
  echo $status >"$step.status"
  return $status
}

finish() {
  clean
  trap - EXIT
  [ ! -e "$folder" ] || echo "EDGEVIT-DONE $folder"
  [ -e "$folder" ] || echo "EDGEVIT-DONE"
}
