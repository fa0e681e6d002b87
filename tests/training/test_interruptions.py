"""What a container is told before it goes: noted, and given way to after the step, whichever signal said it."""

from __future__ import annotations

import signal
from contextlib import contextmanager

import pytest

from gpuserve.runtime.training.attempts import Interruption


class CancelledError(BaseException):
    """What Modal's handler of SIGUSR1 raises, of a kind of its own."""


@contextmanager
def modal_s_handler():
    """Modal's, around an input of a plain function."""

    def cancel(_number, _frame):
        raise CancelledError

    before = signal.signal(signal.SIGUSR1, cancel)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, CancelledError)])
def test_a_signal_is_noted_and_has_its_own_effect_once_the_step_is_done(number, error):
    with modal_s_handler() as cancel:
        with Interruption() as interruption:
            interruption.give_way()  # of nothing
            signal.raise_signal(number)
            assert interruption.asked
            with pytest.raises(error):
                interruption.give_way()
        assert signal.getsignal(signal.SIGUSR1) is cancel
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_container_that_is_told_again_and_again_still_ends_its_step_and_a_second_one_by_hand_breaks_off():
    """The local engine asks every other second, and cancels the input before."""
    with modal_s_handler():
        with Interruption(patient=True) as interruption:
            signal.raise_signal(signal.SIGUSR1)
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            with pytest.raises(CancelledError):
                interruption.give_way()
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_a_sigusr1_that_is_not_modal_s_is_left_as_it_is():
    before = signal.getsignal(signal.SIGUSR1)
    assert not callable(before)
    with Interruption():
        assert signal.getsignal(signal.SIGUSR1) is before


def test_an_interruption_whose_own_handler_does_nothing_ends_the_attempt_all_the_same():
    with modal_s_handler():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGUSR1)
            with pytest.raises(KeyboardInterrupt):
                interruption.give_way()
