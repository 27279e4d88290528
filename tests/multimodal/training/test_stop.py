import os
import signal

import pytest

from multimodal.training import stop as module
from multimodal.training.stop import StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_and_the_process_exits_with_its_code_at_the_end(number: int, code: int) -> None:
    stop = StopSignal()

    def body() -> None:
        with stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked

    with pytest.raises(SystemExit) as end:
        body()
    assert end.value.code == code


def test_without_a_signal_nothing_happens_and_the_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_on_the_way_out_is_not_hidden_by_the_exit_code() -> None:
    def body() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        body()


def test_the_echo_of_a_signal_is_not_a_second_wish_but_insistence_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received == signal.SIGINT
            monkeypatch.setattr(module, "_ECHO", -1.0)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        body()


def test_a_loaders_worker_outlives_ctrl_c_and_ends_on_sigterm() -> None:
    with StopSignal() as stop:
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 143
        assert not stop.asked
