from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters import ImageAdapterConfig
from multimodal.composition import fit, start_placeholder, with_image
from multimodal.precision import chosen
from tests.multimodal.tiny import ADAPTER, TEXT, Letters, composed, eye, text_model


def test_widths_that_are_left_open_are_those_of_text_and_encoder(tmp_path: Path) -> None:
    model = with_image(text_model(), eye(tmp_path), ImageAdapterConfig(at=(2,)))
    config = model.adapters["image"].config
    assert (config.width, config.heads, config.kv_heads, config.head_width) == (32, 4, 2, 8)  # type: ignore[union-attr]
    assert config.feed_forward == TEXT.feed_forward  # type: ignore[union-attr]
    assert config.features == model.encoders["image"].width  # type: ignore[union-attr]
    assert model.first_block == 2


def test_widths_that_do_not_fit_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"the adapter is 32 wide for features of 7, .* features have 9; use 0"):
        fit(replace(ADAPTER, features=7), text_model(), 9)
    with pytest.raises(ValueError, match=r"the adapter is 16 wide .* the text model is 32 wide"):
        fit(replace(ADAPTER, width=16), text_model(), 9)
    with pytest.raises(ValueError, match=r"before blocks \[4, 9\]; the text model has blocks 0 \.\. 3"):
        fit(replace(ADAPTER, at=(1, 4, 9)), text_model(), 9)


def test_a_new_adapter_with_closed_gates_leaves_even_picture_rows_as_they_are(tmp_path: Path) -> None:
    from tests.multimodal.tiny import mixed

    model = composed(tmp_path, gate=0.0)
    batch = mixed(model)
    x = model.text.embed(batch.tokens, model.embeds(batch.tokens))
    assert torch.equal(model(batch, every_position=True), model.text.head(model.text.run(x)))


def test_the_placeholder_starts_as_the_word_it_stands_for(tmp_path: Path) -> None:
    model = composed(tmp_path)
    start_placeholder(model, Letters(), "ab")
    rows = model.text.model.embed_tokens.weight[Letters().encode("ab")]
    torch.testing.assert_close(model.adapters["image"].placeholder.data, rows.mean(0))  # type: ignore[union-attr]


def test_a_precision_that_is_named_is_taken_and_auto_is_one_of_both() -> None:
    assert chosen("float32") == torch.float32
    assert chosen("bfloat16") == torch.bfloat16
    assert chosen("auto") in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("able", "expected"),
    [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"bf16": True}, torch.bfloat16)],
)
def test_auto_is_bfloat16_where_the_processor_has_instructions_for_it(monkeypatch, able: dict, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert chosen("auto") == expected
