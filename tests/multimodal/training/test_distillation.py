from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adapters import SpeechAdapter
from multimodal.batch import NO_TARGET, Item, Sound, collate
from multimodal.modality import Audio
from multimodal.training.distillation import distillation_loss
from multimodal.training.loss import token_loss
from tests.multimodal import hearing, tiny


def setup(folder: Path):
    model = hearing.composed(folder)
    adapter = model.adapters["speech"]
    assert isinstance(adapter, SpeechAdapter)
    items = []
    for i, text in enumerate(("abc", "de")):
        features = torch.randn(20, 32, generator=torch.Generator().manual_seed(i))
        heard = tiny.reader().raw(["say", Audio(b"")], answer=text)
        read = tiny.reader().raw(["say", text], answer=text)
        items.append(Item(row=heard, sounds=(Sound(rows=adapter.rows(20), features=features),), script=read))
    return model, collate(items, pad=1)


def test_it_is_the_divergence_from_the_model_that_reads_and_the_tokens_share(tmp_path: Path) -> None:
    model, batch = setup(tmp_path)
    heard, read = model(batch).double(), model(batch.script).double()
    p, q = (read / 2).softmax(-1), (heard / 2).softmax(-1)
    divergence = (p * (p.log() - q.log())).sum()
    tokens = F.cross_entropy(heard, batch.targets[batch.targets != NO_TARGET], reduction="sum")
    loss, count = distillation_loss(model, batch, share=0.25)
    torch.testing.assert_close(loss.double(), 0.25 * 4 * divergence + 0.75 * tokens, rtol=1e-4, atol=1e-4)
    assert count == token_loss(model, batch)[1] == 7


def test_who_hears_what_the_teacher_reads_has_nothing_left_to_learn(tmp_path: Path) -> None:
    model, batch = setup(tmp_path)
    assert batch.script is not None
    from dataclasses import replace

    same = replace(batch.script, script=batch.script)
    assert float(distillation_loss(model, same, share=1.0)[0]) < 1e-4
    assert float(distillation_loss(model, batch, share=1.0)[0]) > 1.0


def test_the_teacher_gets_no_gradient_and_the_adapter_does(tmp_path: Path) -> None:
    model, batch = setup(tmp_path)
    loss, _ = distillation_loss(model, batch, share=1.0)
    loss.backward()
    assert model.adapters["speech"].out.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="must lie above 0 and at most at 1, got 0"):
        distillation_loss(model, batch, share=0.0)
