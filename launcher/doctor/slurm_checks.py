"""Slurm's settings as far as runs depend on them: pure functions from ``scontrol``'s words (slurm.conf(5))."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from launcher.doctor.findings import Finding, fail, ok, warn

Settings = Mapping[str, str]
CRED_EXPIRE_S = 120
"""Slurm's default lifetime of a job's credential, for which a requeued job waits before it starts again."""
_SHORT_KILL_S = 10
_SMALL_ARRAY = 1001


def check_settings(config: Settings, partitions: Mapping[str, Settings], asked: str | None) -> Iterator[Finding]:
    """Everything that two calls of ``scontrol`` tell.

    Args:
        config: of ``scontrol show config``.
        partitions: of ``scontrol show partition``.
        asked: the partition that is to be used; None: the default one.
    """
    yield from check_preemption(config, _chosen(partitions, asked))
    yield check_requeue(config)
    yield check_requeue_delay(config)
    yield check_kill_wait(config)
    yield check_arrays(config)
    yield check_accounting(config)


def check_partition(partitions: Mapping[str, Settings], asked: str | None, nodes: int) -> Finding:
    """Whether there is such a partition, and it takes jobs of so many nodes."""
    chosen = _chosen(partitions, asked)
    names = ", ".join(sorted(partitions)) or "none"
    if asked is not None and asked not in partitions:
        return fail("partition", f"{asked}: there is none of that name", f"choose one of: {names}")
    if not chosen:
        return warn("partition", f"no partition is the default one (there are: {names})", "name one: --partition")
    name, settings = next(iter(chosen.items()))
    text = f"{name}: {settings.get('TotalNodes', '?')} nodes, at most {settings.get('MaxTime', '?')}"
    if settings.get("State", "UP") != "UP":
        return fail("partition", f"{name} is {settings['State']}", f"choose another one of: {names}")
    if (total := _number(settings.get("TotalNodes"))) is not None and total < nodes:
        return fail("partition", text, f"{nodes} nodes are more than it has")
    return ok("partition", text)


def default_partition(partitions: Mapping[str, Settings]) -> str | None:
    """The one that jobs go to which name none; None where there is no such."""
    return next(iter(_chosen(partitions, None)), None)


def _chosen(partitions: Mapping[str, Settings], asked: str | None) -> dict[str, Settings]:
    if asked is not None:
        return {name: s for name, s in partitions.items() if name == asked}
    default = {name: s for name, s in partitions.items() if s.get("Default") == "YES"}
    return default or (dict(partitions) if len(partitions) == 1 else {})


def check_preemption(config: Settings, partitions: Mapping[str, Settings]) -> Iterator[Finding]:
    """Who is preempted, how it is warned, and how long it has."""
    kind = config.get("PreemptType", "preempt/none")
    if kind == "preempt/none":
        yield ok("preemption", "PreemptType=preempt/none: nothing is preempted here")
        return
    for name, settings in partitions.items():
        mode = settings.get("PreemptMode") or config.get("PreemptMode", "OFF")
        text = f"{kind}, partition {name}: PreemptMode={mode}, GraceTime={settings.get('GraceTime', '0')} s"
        if mode == "OFF":
            yield ok("preemption", f"{text}: its jobs are not preempted")
        elif mode != "REQUEUE":
            yield warn(
                "preemption",
                text,
                "a preempted job is not requeued; a successor goes on with its run (launch.continue=auto)",
            )
        elif not _number(settings.get("GraceTime")):
            wait = _number(config.get("KillWait")) or 0
            told = f"a save must fit into KillWait={wait} s; else save more often (checkpoint.every_steps)"
            yield warn("preemption", text, told)
        else:
            yield ok("preemption", text)
    if "preempt_send_user_signal" in config.get("SlurmctldParameters", ""):
        yield ok("warning", "preempt_send_user_signal: a job is warned by its own signal")
    else:
        yield warn(
            "warning", "SlurmctldParameters lacks preempt_send_user_signal: the warning is SIGTERM",
            "runs save at SIGTERM too; other programs of the job may end at once",
        )  # fmt: skip


def check_requeue(config: Settings) -> Finding:
    """Whether jobs are requeued."""
    if config.get("JobRequeue", "1") == "1":
        return ok("requeue", "JobRequeue=1")
    return warn(
        "requeue",
        "JobRequeue=0",
        "jobs ask for it themselves (--requeue), and launch.continue=auto has successors go on",
    )


def check_requeue_delay(config: Settings) -> Finding:
    """How long a requeued job waits."""
    found = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    seconds = int(found[1]) if found else CRED_EXPIRE_S
    said = "" if found else " (Slurm's default; AuthInfo=cred_expire=… shortens it)"
    return ok("requeue delay", f"a requeued job waits {seconds} s or more{said}")


def check_kill_wait(config: Settings) -> Finding:
    """How long a job has between SIGTERM and SIGKILL."""
    seconds = _number(config.get("KillWait"))
    text = f"KillWait={config.get('KillWait', '?')}"
    if seconds is not None and seconds < _SHORT_KILL_S:
        return warn("kill wait", text, "at an admin's requeue or a scancel a save must fit into that")
    return ok("kill wait", text)


def check_arrays(config: Settings) -> Finding:
    """How large an array may be."""
    text = f"MaxArraySize={config.get('MaxArraySize', '?')}, MaxJobCount={config.get('MaxJobCount', '?')}"
    size = _number(config.get("MaxArraySize"))
    if size is None or size < 2:
        return warn("arrays", text, "no arrays here: each run becomes a job of its own, and submitting takes longer")
    if size < _SMALL_ARRAY:
        return warn("arrays", text, f"sweeps are cut into arrays of {size}")
    return ok("arrays", text)


def check_accounting(config: Settings) -> Finding:
    """Whether Slurm remembers ended jobs."""
    kind = config.get("AccountingStorageType", "accounting_storage/none")
    if not kind.endswith("/none"):
        return ok("accounting", kind)
    age = config.get("MinJobAge", "?")
    return warn("accounting", f"off: Slurm forgets an ended job after {age}", "what our files do not say is then lost")


def check_limits(limits: Sequence[tuple[str, str, int]]) -> Finding:
    """How many jobs Slurm takes of this user; limits are (account, partition, number)."""
    if not limits:
        return ok("limits", "no MaxSubmitJobs of this user's associations")
    account, partition, number = min(limits, key=lambda limit: limit[2])
    where = f"account {account}{f', partition {partition}' if partition else ''}"
    text = f"MaxSubmitJobs={number} ({where})"
    if number < _SMALL_ARRAY:
        return warn("limits", text, "of a larger sweep the rest stays PLANNED; the same command submits it later")
    return ok("limits", text)


def _number(text: str | None) -> int | None:
    found = re.match(r"\d+", text or "")
    return int(found[0]) if found else None
