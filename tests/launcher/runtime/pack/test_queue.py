"""The queue of packed members: however workers come and go, an entry is in one place, and nobody's work is taken."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.runtime.errors import UserError
from launcher.runtime.pack.queue import Queue, entry_name

ENTRIES = [entry_name(i) for i in range(4)]
WORKERS = ("12_0", "12_1", "host.7")
ACTS = ("join", "leave", "claim", "give back", "end", "end waiting", "give back of dead")


def places(queue: Queue) -> dict[str, str]:
    """Where each entry is; fails where one is in two places."""
    found = [*((e, "waiting") for e in queue.list_waiting()), *queue.claims().items()]
    found += [(entry, "ended") for entry in queue.list_ended()]
    assert len(found) == len(dict(found)) == len(list(queue.claimed.iterdir())) + len(found) - len(queue.claims())
    return dict(found)


@pytest.fixture
def queue(tmp_path):
    made = Queue(tmp_path / "q")
    made.fill(ENTRIES)
    return made


@given(st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from(WORKERS), st.sampled_from(ENTRIES)), max_size=40))
@settings(max_examples=150)
def test_each_entry_is_in_one_place_as_a_model_says(acts):
    folder = Path(tempfile.mkdtemp())
    queue, model = Queue(folder), dict.fromkeys(ENTRIES, "waiting")
    queue.fill(ENTRIES)
    alive: dict[str, ExitStack] = {}

    def given_back(gone: set[str]) -> None:
        model.update({entry: "waiting" for entry, place in model.items() if place in gone})

    for act, worker, entry in acts:
        if act == "join" and worker not in alive:
            alive[worker] = ExitStack()
            alive[worker].enter_context(queue.joined(worker))
            given_back({worker})
        elif act == "leave" and worker in alive:
            alive.pop(worker).close()
        elif act == "claim":
            assert queue.claim(entry, worker) == (model[entry] == "waiting")
            model[entry] = worker if model[entry] == "waiting" else model[entry]
        elif act in ("give back", "end"):
            changed = queue.give_back(entry, worker) if act == "give back" else queue.end(entry, worker)
            assert changed == (model[entry] == worker)
            if changed:
                model[entry] = "waiting" if act == "give back" else "ended"
        elif act == "end waiting":
            assert queue.end(entry, None) == (model[entry] == "waiting")
            model[entry] = "ended" if model[entry] == "waiting" else model[entry]
        elif act == "give back of dead":
            dead = set(WORKERS) - set(alive)
            assert queue.give_back_of_dead() == sum(place in dead for place in model.values())
            given_back(dead)
        assert places(queue) == model
    for stack in alive.values():
        stack.close()
    shutil.rmtree(folder)


def test_of_eight_processes_that_race_for_each_entry_one_gets_it(tmp_path):
    queue, entries = Queue(tmp_path / "q"), [entry_name(i) for i in range(200)]
    queue.fill(entries)
    gate, opened = os.pipe()
    racers = []
    for racer in range(8):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.close(opened)
                os.read(gate, 1)  # until all are there: the end of the pipe
                won = [entry for entry in entries if queue.claim(entry, f"w{racer}")]
                (tmp_path / f"won.{racer}").write_text("\n".join(won))
                code = 0
            finally:
                os._exit(code)
        racers.append(pid)
    os.close(gate), os.close(opened)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in racers] == [0] * 8
    won = [line for racer in range(8) for line in (tmp_path / f"won.{racer}").read_text().split()]
    assert sorted(won) == entries
    assert sorted(queue.claims()) == entries and not queue.list_waiting()


def joined_elsewhere(queue: Queue, worker: str) -> tuple[int, int, int]:
    """A process that is ``worker`` and has claimed the first entry, a child of it, and the pipe's end that ends both.

    A child of a worker inherits its lock.
    """
    ready, tell = os.pipe()
    listen, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            with queue.joined(worker):
                queue.claim(ENTRIES[0], worker)
                child = os.fork()
                if child:
                    os.write(tell, child.to_bytes(4, "big"))
                os.read(listen, 1)
        finally:
            os._exit(0)
    os.close(listen), os.close(tell)
    child = int.from_bytes(os.read(ready, 4), "big")
    os.close(ready)
    return pid, child, end


def test_entries_of_a_dead_worker_come_back_once_its_children_are_dead_too(queue):
    pid, child, end = joined_elsewhere(queue, "12_0")
    assert queue.is_alive("12_0") and queue.give_back_of_dead() == 0
    watched = os.pidfd_open(child)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert queue.is_alive("12_0") and queue.give_back_of_dead() == 0, "its child may still save"
    os.close(end)
    assert select.select([watched], [], [], 10)[0]
    os.close(watched)
    assert queue.claims() == {ENTRIES[0]: "12_0"} and not queue.is_alive("12_0")
    assert queue.give_back_of_dead() == 1 and queue.list_waiting() == ENTRIES


def test_a_worker_that_starts_again_gives_back_what_it_had(queue):
    with queue.joined("12_0"):
        queue.claim(ENTRIES[1], "12_0"), queue.claim(ENTRIES[2], "12_1")
    with queue.joined("12_0"):
        assert queue.claims() == {ENTRIES[2]: "12_1"} and ENTRIES[1] in queue.list_waiting()


def test_names_with_an_underscore_and_a_dot_stay_whole(queue):
    queue.claim(ENTRIES[0], "node.example-1.org.17")
    assert queue.claims() == {ENTRIES[0]: "node.example-1.org.17"}


def test_what_else_lies_in_the_folders_is_nobodys_work(queue):
    for name in (".nfs0001", "000001~", "0000010", "-00001", "notes", "a@b"):
        (queue.waiting / name).touch(), (queue.ended / name).touch(), (queue.claimed / name).touch()
    (queue.claimed / "000002").touch()
    assert queue.list_waiting() == ENTRIES and queue.list_ended() == [] and queue.claims() == {}
    queue.claim(ENTRIES[0], "a@b")
    assert queue.claims() == {ENTRIES[0]: "a@b"} and queue.give_back_of_dead() == 1


def test_no_other_start_of_a_dead_worker_comes_between(queue, monkeypatch):
    """It may claim the same entry under the same name; that is not to be taken from it."""
    with queue.joined("12_0"):
        queue.claim(ENTRIES[1], "12_0")
    locked, give_back = [], Queue.give_back

    def watched(self, entry, worker):
        locked.append(self.is_alive(worker))
        return give_back(self, entry, worker)

    monkeypatch.setattr(Queue, "give_back", watched)
    assert queue.give_back_of_dead() == 1 and locked == [True]
    assert not queue.is_alive("12_0")


def test_filling_again_adds_only_what_is_new_where_nothing_was_claimed(queue):
    queue.fill([*ENTRIES, "000009"])
    assert queue.list_waiting() == [*ENTRIES, "000009"]


def test_a_queue_that_is_gone_is_told_in_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"queue .*: No such file or directory; submit the sweep again"),
        Queue(tmp_path / "none").joined("w"),
    ):
        pass
    assert Queue(tmp_path / "none").list_waiting() == [] and Queue(tmp_path / "none").give_back_of_dead() == 0


def test_what_a_worker_says_of_its_starts_is_kept_apart_by_worker(queue):
    queue.add_event("12_0", "start", step=0)
    queue.add_event("12_1", "start", step=1)
    assert [event["step"] for event in queue.events("12_1")] == [1]
