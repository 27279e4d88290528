import io

from multimodal.training.loop import Step
from multimodal.training.progress import LiveProgress
from multimodal.training.state import Position


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(index: int, *, last: bool = False, skipped: bool = False) -> Step:
    return Step(
        index=index,
        loss=2.0,
        targets=10,
        samples=8,
        gradient_norm=1.0,
        learning_rate=1e-3,
        seconds=0.5,
        position=Position(step=index, samples=8 * index, skipped=int(skipped)),
        skipped=skipped,
        keys=("cat.jpg",) if skipped else (),
        last=last,
    )


def test_in_a_log_there_is_a_line_now_and_then_and_the_last_one() -> None:
    log = io.StringIO()
    with LiveProgress(9, seconds=3600.0, stream=log) as progress:
        for index in range(1, 10):
            progress.show(step(index, last=index == 9))
    assert log.getvalue() == "step 9/9  loss 2.000  16.0 samples/s  0:00 left\n"


def test_every_line_is_due_when_no_time_has_to_pass() -> None:
    log = io.StringIO()
    with LiveProgress(9, start=4, seconds=0.0, stream=log) as progress:
        for index in (5, 6):
            progress.show(step(index))
    assert [line.split()[1] for line in log.getvalue().splitlines()] == ["5/9", "6/9"]


def test_in_a_terminal_one_line_lives() -> None:
    terminal = Terminal()
    with LiveProgress(9, stream=terminal) as progress:
        for index in range(1, 10):
            progress.show(step(index, last=index == 9))
    assert "loss 2.000  16.0 samples/s" in terminal.getvalue()
    assert "9/9" in terminal.getvalue()


def test_a_skipped_step_is_told_with_its_samples() -> None:
    log = io.StringIO()
    with LiveProgress(9, seconds=3600.0, stream=log) as progress:
        progress.show(step(1, skipped=True))
    assert log.getvalue() == "step 1 was not finite and was skipped; samples: cat.jpg\n"


def test_processes_but_the_main_one_are_quiet() -> None:
    log = io.StringIO()
    with LiveProgress(9, quiet=True, seconds=0.0, stream=log) as progress:
        progress.show(step(1, last=True))
        progress.note("hello")
    assert log.getvalue() == ""
