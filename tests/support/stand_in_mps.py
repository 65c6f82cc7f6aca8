"""Programs that play nvidia-smi and nvidia-cuda-mps-control: real processes, without a GPU."""

from pathlib import Path

# Daemon and client talk through files of the daemon's folder.
CONTROL = r"""
pipe=$CUDA_MPS_PIPE_DIRECTORY
alive() { [ -e "$pipe/pid" ] && kill -0 "$(cat "$pipe/pid")" 2>/dev/null; }
case ${1:-} in
  -d)
    [ ! -e "$STAND_IN_MPS/broken" ] || { echo "no MPS here"; exit 1; }
    echo "$CUDA_VISIBLE_DEVICES $pipe" >> "$STAND_IN_MPS/daemons"
    setsid "$0" serve &
    while ! alive; do sleep 0.02; done ;;
  serve)
    echo $$ > "$pipe/pid"
    if [ -e "$STAND_IN_MPS/deaf" ]; then trap '' TERM; fi
    while [ ! -e "$pipe/quit" ] || [ -e "$STAND_IN_MPS/deaf" ]; do sleep 0.05; done
    rm "$pipe/pid" ;;
  *)
    alive || { echo "Cannot find MPS control daemon process"; exit 1; }
    read -r command more
    case $command in
      start_server) echo 4711 > "$pipe/server" ;;
      get_server_list) cat "$pipe/server" 2>/dev/null || true ;;
      quit) touch "$pipe/quit" ;;
    esac ;;
esac
"""
SMI = r"""
for gpu in 0 1 2 3; do echo "$gpu, GPU-0000000$gpu, $(cat "$STAND_IN_MPS/mode")"; done
"""


def write_tools(folder: Path, mode: str = "Default", has_mps: bool = True) -> Path:
    """Write both programs. `STAND_IN_MPS` must name the folder, and `PATH` must begin with it."""
    folder.mkdir()
    (folder / "mode").write_text(mode)
    programs = {"nvidia-smi": SMI} | ({"nvidia-cuda-mps-control": CONTROL} if has_mps else {})
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    return folder


def daemons(folder: Path) -> list[list[str]]:
    """The GPUs and the folder of every daemon that was started."""
    path = folder / "daemons"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
