"""A program that counts: it knows its environment, SIGUSR2 and its exit code, and nothing else of the launcher."""

import json
import os
import signal
import sys
import time
from pathlib import Path

config = json.loads(Path(os.environ["LAUNCHER_CONFIG"]).read_text())
metrics = Path(os.environ["LAUNCHER_METRICS"])
folder, rank = Path(os.environ["LAUNCHER_RUN_DIR"]), int(os.environ["RANK"])
saved = folder / f"saved.{rank}.json"
state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "total": 0}
asked = []


def stop(number, frame):
    """Remember it; a second signal, while Python ends, would kill it."""
    signal.signal(number, signal.SIG_IGN)
    asked.append(number)


signal.signal(signal.SIGUSR2, stop)
meeting = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
place = {"rank": rank, "size": int(os.environ["WORLD_SIZE"]), "attempt": int(os.environ["LAUNCHER_ATTEMPT"])}
with (folder / "ranks.jsonl").open("a") as file:
    file.write(json.dumps({**place, "meeting": ":".join(map(str, meeting))}) + "\n")
while state["step"] < config["steps"]:
    state = {"step": state["step"] + 1, "total": state["total"] + state["step"] + 1}
    time.sleep(config["pace_s"])
    with metrics.open("a") as file:
        file.write(json.dumps({"train/loss": 1 / state["step"], "total_steps": config["steps"], **state}) + "\n")
    if asked:
        saved.write_text(json.dumps(state))
        sys.exit(75)
