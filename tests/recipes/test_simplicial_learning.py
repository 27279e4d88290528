"""The comparison is fair by construction, and what is done is not done again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multimodal.evaluation import read_result
from recipes.simplicial_learning import ARMS, METRICS, Config, Task, build, flop, loss, main, rows_of, shape
from text_backbone.attention import Attention
from text_backbone.simplicial import SimplicialAttention

TASKS: tuple[Task, ...] = ("match3", "text")


@pytest.mark.parametrize("task", TASKS)
def test_both_sides_have_the_same_parameters_and_flop_and_begin_alike_where_they_are_alike(task: Task) -> None:
    pairs, plain = (build(task, arm, 3) for arm in ARMS)
    kinds = [[type(block.self_attn) for block in model.model.layers] for model in (pairs, plain)]
    assert kinds == [[Attention] * 3 + [SimplicialAttention], [Attention] * 4]
    more = sum(w.numel() for w in pairs.parameters()) - sum(w.numel() for w in plain.parameters())
    assert more == 3 * pairs.config.head_width
    assert flop(pairs.config) == pytest.approx(flop(plain.config), rel=0.02)
    if task == "match3":
        assert torch.equal(pairs.model.embed_tokens.weight, plain.model.embed_tokens.weight)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_rows_are_the_same_for_all_and_no_gradient_is_missing(task: Task) -> None:
    c = Config(held_out=2)
    first, again = (next(rows_of(task, c, 2, torch.Generator().manual_seed(5), held=True)) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens)
    assert first.tokens.shape == (2, shape(task, "simplicial").context)
    model = build(task, "simplicial", 0)
    total, count = loss(model, first)
    total.backward()
    assert count == first.targets.numel()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_a_short_comparison_is_published_and_resumed(tmp_path: Path) -> None:
    c = Config(
        seeds=(0, 1), steps=2, rows=2, held_out=3, curve=1, out=str(tmp_path / "runs"), publish=str(tmp_path / "docs")
    )
    main(c)
    told = read_result(tmp_path / "docs" / "simplicial_learning.json")
    for name in METRICS.values():
        each = [told.metrics[f"{name}_seed_{seed}"] for seed in c.seeds]
        assert told.metrics[name] == pytest.approx(sum(each) / 2)
        assert told.baselines["dot_product"].keys() == told.metrics.keys()
    curves = told.metadata["curves"]["training_loss_nats_by_seed"]
    assert {name: [len(one) for one in lines] for name, lines in curves.items()} == {
        f"{task}_{arm}": [2, 2] for task in TASKS for arm in ARMS
    }
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").glob("*-*-*.json")}
    assert len(made) == 8
    lost = tmp_path / "runs" / "text-simplicial-1.json"
    before = json.loads(lost.read_text())
    lost.unlink()
    main(c)
    assert {file for file, at in made.items() if file.stat().st_mtime_ns != at} == {lost}
    after = json.loads(lost.read_text())
    assert after["curve"] == before["curve"]
    assert after["held_out"] == pytest.approx(before["held_out"])
    main(replace(c, steps=1, publish=""))
    assert json.loads(lost.read_text())["settings"]["steps"] == 1
