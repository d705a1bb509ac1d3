"""Signals wait for the end of a step."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from stages.training.interruption import held_interruption


def test_first_interrupt_is_held_back() -> None:
    """The code goes on to its safe point and leaves there as Ctrl-C would."""
    with held_interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interruption.leave()


def test_terminate_leaves_with_its_exit_code() -> None:
    """SIGTERM becomes exit code 143, by which a supervisor knows it."""
    with held_interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            interruption.leave()
    assert caught.value.code == 143


def test_second_interrupt_acts_at_once() -> None:
    """Who presses Ctrl-C twice does not want to wait."""
    with held_interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back() -> None:
    """Outside of the loop signals act as before."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with held_interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) != before[0]
        interruption.leave()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ignored_signal_stays_ignored() -> None:
    """A run under nohup or in a shell's background goes on when the terminal sends Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held_interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.number is None


def test_other_threads_hold_nothing_back() -> None:
    """Only the main thread may set handlers; elsewhere training still works."""
    results = []

    def work() -> None:
        with held_interruption() as interruption:
            results.append(interruption.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [None]
