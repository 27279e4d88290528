"""A SwiGLU backbone becomes one of squared ReLU: another model, saved and loaded as such."""

from pathlib import Path

import pytest
import torch

from multimodal.checkpoint import text_fingerprint
from recipes.relufy import Config, loss, relufy
from text_backbone import LlamaConfig, TextBackbone, load_backbone
from text_backbone.checkpoint import save_backbone

TINY = LlamaConfig(
    vocabulary=40, width=16, layers=2, heads=2, kv_heads=1, head_width=8, feed_forward=64, tied=True, stops=(0,), pad=0
)


def config(tmp_path: Path, **rest: int) -> Config:
    return Config(backbone="b", text=tmp_path / "t", out=tmp_path / "out", rows=4, learning_rate=1e-2, **rest)


def test_layers_learn_what_the_old_ones_gave_and_the_rest_stays(tmp_path: Path) -> None:
    text, tokens = TextBackbone(TINY).eval(), torch.randint(40, (12, 16))
    untrained, short = relufy(text, tokens, config(tmp_path, steps=1))
    student, report = relufy(text, tokens, config(tmp_path, steps=150))
    for before, after in zip(short["layers"], report["layers"], strict=True):
        assert after["relative_error"] < 0.8 * before["relative_error"]
        assert 0 < after["zeros"] < 1
    assert report["loss"]["difference"] == pytest.approx(loss(student, tokens[-1:], 4) - loss(text, tokens[-1:], 4))
    kept = {name: weight for name, weight in text.state_dict().items() if ".mlp." not in name}
    assert all(torch.equal(student.state_dict()[name], weight) for name, weight in kept.items())
    count, wide = (sum(p.numel() for p in model.parameters()) for model in (student, text))
    assert count == wide
    assert untrained.config == student.config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_new_backbone_is_saved_loaded_and_has_a_fingerprint_of_its_own(tmp_path: Path, dtype: torch.dtype) -> None:
    text, tokens = TextBackbone(TINY).to(dtype).eval(), torch.randint(40, (4, 8))
    student, report = relufy(text, tokens, config(tmp_path, steps=1))
    save_backbone(student, tmp_path / "new")
    loaded = load_backbone(tmp_path / "new", dtype=dtype)
    assert loaded.config == student.config
    assert torch.equal(loaded(tokens), student(tokens))
    assert text_fingerprint(loaded) == report["fingerprint"]["after"] != report["fingerprint"]["before"]
    with pytest.raises(ValueError, match="knows no squared ReLU"):
        save_backbone(student, tmp_path / "meta", layout="meta")
    with pytest.raises(ValueError, match="squared ReLU already"):
        relufy(student, tokens, config(tmp_path, steps=1))


def test_a_frozen_backbone_of_squared_relu_measures_nothing(tmp_path: Path) -> None:
    text = TextBackbone(TINY).eval()
    student, _ = relufy(text, torch.randint(40, (4, 8)), config(tmp_path, steps=1))
    before = text_fingerprint(student)
    student.train()(torch.randint(40, (2, 8)))
    assert text_fingerprint(student) == before


def test_decoding_reads_active_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.sparse_relu2 import cpu

    text = TextBackbone(TINY).eval()
    student, _ = relufy(text, torch.randint(40, (4, 8)), config(tmp_path, steps=1))
    calls, true = [], cpu.skip_rows
    monkeypatch.setattr(cpu, "skip_rows", lambda *given: calls.append(1) or true(*given))
    with torch.no_grad():
        student(torch.randint(40, (1, 1)))
    assert len(calls) == TINY.layers
