"""Nine runs of recipes/image_adapter.py are compared; here three of seconds, and what a second call does with them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from multimodal.command_line import parse
from multimodal.data.loader import LoaderConfig
from multimodal.data.pictures import PictureData
from multimodal.data.shards import write_shard
from multimodal.evaluation import read_result
from multimodal.settings import to_json
from multimodal.training import TrainingConfig
from recipes import image_adapter
from recipes.relu2_captioning import ARMS, Config, main
from tests.multimodal import tiny

LEARNS = ((r"adapters\.image\.placeholder", 0.0), (r"adapters\.image\..*", 1.0))


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Config]:
    names = "abcdefgh"
    samples: list[dict] = [
        {"__key__": f"{n:02d}", "png": tiny.png(n), "txt": f"number {names[n]}"} for n in range(len(names))
    ]
    write_shard(tmp_path / "train.tar", samples)
    run = image_adapter.Config(
        text=str(tiny.text_folder(tmp_path / "text")),
        precision="float32",
        encoder=tiny.eye(tmp_path / "eye"),
        adapter=replace(tiny.ADAPTER, feed_forward=64),
        data=PictureData(
            train=(str(tmp_path / "train.tar"),),
            batch=4,
            cache=str(tmp_path / "features"),
            reading=LoaderConfig(workers=0),
        ),
        training=TrainingConfig(learns=LEARNS, steps=9, warm_up=2, learning_rate=1e-2),
    )
    (tmp_path / "toy.json").write_text(to_json(run))
    yield Config(
        seeds=(4,),
        steps=5,
        warm_up=2,
        test=str(tmp_path / "train.tar"),
        most=3,
        more=f"--config {tmp_path / 'toy.json'}",
        out=str(tmp_path / "runs"),
        publish=str(tmp_path / "docs"),
    )
    AcceleratorState._reset_state(reset_partial_state=True)


def test_three_feed_forwards_of_equal_parameters_are_compared_and_nothing_is_done_twice(
    toy: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    run = subprocess.run

    def in_this_process(command: list[str], **rest: Any) -> subprocess.CompletedProcess[str]:
        if command[0] != sys.executable:
            return run(command, **rest)  # a compiler's
        started.append(command[2:])
        image_adapter.main(parse(image_adapter.PRESETS, about="", args=command[2:]))
        AcceleratorState._reset_state(reset_partial_state=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", in_this_process)
    main(toy)
    assert len(started) == len(ARMS)
    told = read_result(tmp_path / "docs" / "relu2_captioning.json")
    assert told.n == 3
    assert set(told.baselines) == {"relu2_dense", "swiglu"}
    assert told.metrics["word_f1"] == told.metrics["word_f1_seed_4"]
    [sparse] = told.metadata["counters_at_the_end"]["relu2"]
    [dense] = told.metadata["counters_at_the_end"]["relu2_dense"]
    assert (sparse["sparse"], dense["sparse"]) == (1, 0)
    assert 0 < sparse["violating_groups"] < 1
    assert len(set(told.metadata["trained_parameters"].values())) == 1
    assert all(len(losses) == toy.steps for [losses] in told.metadata["losses_by_seed"].values())
    main(toy)
    assert len(started) == len(ARMS)
    with pytest.raises(SystemExit, match="holds a run of 5 steps, not 6"):
        main(replace(toy, steps=6))
