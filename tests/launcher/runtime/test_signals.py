"""The stop flag: real signals sent to this process and to a child of it."""

from __future__ import annotations

import os
import signal

import pytest

from launcher.runtime.signals import StopFlag

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_flag_is_down_until_a_signal_comes(stop):
    assert not stop
    assert stop.signal is None


@pytest.mark.parametrize("number", SIGNALS)
def test_each_stop_signal_raises_the_flag_and_nothing_else(stop, number):
    os.kill(os.getpid(), number)
    assert stop
    assert stop.signal is number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_batch_system_may_repeat_itself(stop, number):
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    assert stop


def test_a_second_ctrl_c_interrupts(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_one_ctrl_c_after_another_signal_is_still_the_first(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop


def test_a_second_ctrl_c_interrupts_whatever_came_between(stop):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes one on so
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_take_its_parents_stop_for_its_own(stop):
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7 if stop else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not stop


def test_a_flag_that_was_not_installed_hears_nothing(stop):
    other = StopFlag()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop
    assert not other
