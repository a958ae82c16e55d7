"""Slurm as small scripts on PATH that print what was recorded of the real commands (22.05.8), and note their calls."""

from __future__ import annotations

import os
from pathlib import Path

AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
NO_ACCOUNTING = "Slurm accounting storage is disabled"
_SCRIPT = """\
#!/bin/sh
here=$(dirname "$0")/..
echo "$(basename "$0") $*" >> "$here/calls"
sh "$here/$(basename "$0").does"
cat "$here/$(basename "$0").out"
cat "$here/$(basename "$0").err" >&2
exit $(cat "$here/$(basename "$0").code")
"""


class RecordedSlurm:
    """``says`` sets what a command prints; ``env`` finds it; ``calls`` are the command lines so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "sacctmgr", "sinfo"):
            script = folder / "bin" / name
            script.write_text(_SCRIPT)
            script.chmod(0o755)
            self.says(name, "")
            self.does(name, "")

    def says(self, command: str, out: str = "", err: str = "", code: int = 0) -> None:
        """From now on ``command`` prints this and ends with ``code``."""
        for kind, text in (("out", out), ("err", err), ("code", str(code))):
            (self._folder / f"{command}.{kind}").write_text(text)

    def does(self, command: str, script: str) -> None:
        """From now on ``command`` runs this shell script first: what happens while it is asked."""
        (self._folder / f"{command}.does").write_text(script)

    def refuses(self, command: str, option: str, err: str, out: str) -> None:
        """From now on ``command`` prints ``err`` and fails where it is given ``option``, and else prints ``out``."""
        self.says(command, out)
        (self._folder / f"{command}.refused").write_text(err)
        refuse = f'cat "$here/{command}.refused" >&2; exit 1'
        script = _SCRIPT.replace('sh "$here', f'case " $* " in *" {option} "*) {refuse} ;; esac\nsh "$here', 1)
        (self._folder / "bin" / command).write_text(script)

    def queue(
        self, *jobs: tuple[str, str], reason: str = "None", start: str = "N/A", nodes: str = "", script: str = ""
    ) -> None:
        """squeue knows these jobs with their states."""
        self.says("squeue", "".join(f"{job}|{state}|{reason}|{start}|0:00|{nodes}|{script}\n" for job, state in jobs))

    def history(self, *jobs: tuple[str, str]) -> None:
        """sacct knows these."""
        self.says("sacct", "".join(f"{job}|{state}\n" for job, state in jobs))

    @property
    def env(self) -> dict[str, str]:
        """An environment whose PATH has these commands first, and no cluster of the machine's own."""
        rest = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return rest | {"PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}"}

    @property
    def calls(self) -> list[str]:
        """Command lines, oldest first."""
        calls = self._folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def called(self, command: str) -> list[str]:
        """Those of one command."""
        return [call for call in self.calls if call.split()[0] == command]
