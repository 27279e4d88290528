from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from adapters import ImageAdapter
from multimodal.lexical_start import Captioned, content_words, lexical_start, word_codes
from multimodal.model import MultimodalModel
from tests.multimodal.tiny import TEXT, Letters, composed, text_model

NAMES = ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")


def features(seed: int) -> tuple[Tensor, list[str]]:
    """Four pictures of each name: a direction of the name and a little noise of the picture; the names are the same
    for every seed.
    """
    prototypes = torch.randn(len(NAMES), 288, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(4 * len(NAMES), 288, generator=torch.Generator().manual_seed(seed))
    return prototypes.repeat(4, 1) + 0.3 * noise, [*NAMES] * 4


@pytest.fixture
def started(tmp_path: Path) -> MultimodalModel:
    model = composed(tmp_path, recall=16, mixer=0)
    found, names = features(1)
    pictures = [
        Captioned(patches=one, whole=one.expand(2, -1), caption=name) for one, name in zip(found, names, strict=True)
    ]
    lexical_start(model, Letters(), pictures)
    return model


def image_adapter(model: MultimodalModel) -> ImageAdapter:
    adapter = model.adapters["image"]
    assert isinstance(adapter, ImageAdapter)
    return adapter


def named(rows: Tensor, model: MultimodalModel) -> list[str]:
    """The two letters that each row's direction says most."""
    letters = "".join(NAMES)
    scores = F.normalize(rows, dim=-1) @ word_codes(model.text, Letters().encode(letters)).T
    return ["".join(sorted(letters[i] for i in best)) for best in scores.topk(2).indices.tolist()]


def test_a_words_code_is_read_back_as_this_word_and_no_other() -> None:
    text = text_model()
    words = list(range(4, TEXT.vocabulary))
    codes = word_codes(text, words)
    table = text.model.embed_tokens.weight
    assert ((table - table.mean(0)) @ codes.T).argmax(0).tolist() == words
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(len(words)))


def test_words_in_almost_every_caption_name_nothing() -> None:
    assert content_words([[9, 1], [9, 2], [9, 3], [9, 4]]) == [1, 2, 3, 4]
    assert content_words([[9, 1], [9, 1]]) == [1, 9]


def test_a_picture_projected_says_the_words_of_its_caption(started: MultimodalModel) -> None:
    """New pictures of things that were shown."""
    found, names = features(2)
    projector = image_adapter(started).projector
    assert named(projector.out(found), started) == names


def test_a_whole_recalls_the_name_of_what_it_is_a_picture_of(started: MultimodalModel) -> None:
    found, names = features(2)
    summary = image_adapter(started).projector.summary
    assert summary is not None
    said = summary.recall.eval()(found)  # n J D
    spoken = Letters().encode(" " + "".join(NAMES))
    scores = F.normalize(said, dim=-1) @ word_codes(started.text, spoken).T
    heard = scores[:, :3].argmax(-1)
    assert ["".join((" " + "".join(NAMES))[i] for i in one) for one in heard.tolist()] == [f" {name}" for name in names]
    assert named(summary.linear(found.repeat(1, 2)), started) == names


def test_values_and_outputs_are_a_copy_as_loud_as_the_text(started: MultimodalModel) -> None:
    """Media of unit length come out in the same direction, as long as the stream ahead of the block is."""
    adapter = image_adapter(started)
    codes = word_codes(started.text, Letters().encode("".join(NAMES)))
    said = [Letters().encode(f" {name}") for name in NAMES]
    for at, block in zip(adapter.config.at, adapter.attentions(), strict=True):
        values = block.v_proj(codes).unflatten(-1, (TEXT.kv_heads, TEXT.head_width))
        heads = values.repeat_interleave(TEXT.heads // TEXT.kv_heads, dim=1).flatten(1)
        out = block.o_proj(heads)
        streams = [started.text.run(started.text.embed(torch.tensor([one])), last=at)[0, 1:] for one in said]
        size = torch.cat(streams).square().mean(-1).sqrt().mean()
        torch.testing.assert_close(out, codes * size, rtol=1e-3, atol=1e-3)


def test_the_same_pictures_give_the_same_start(started: MultimodalModel, tmp_path: Path) -> None:
    again = composed(tmp_path, recall=16, mixer=0)
    found, names = features(1)
    shown = [
        Captioned(patches=one, whole=one.expand(2, -1), caption=name) for one, name in zip(found, names, strict=True)
    ]
    lexical_start(again, Letters(), iter(shown))
    ours, theirs = started.state_dict(), again.state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert all(torch.equal(weight, ours[f"text.{name}"]) for name, weight in text_model().state_dict().items())


def test_captions_that_are_all_one_give_no_start(tmp_path: Path) -> None:
    model = composed(tmp_path)
    same = [Captioned(patches=one, whole=one.expand(2, -1), caption="x") for one in torch.randn(3, 288)]
    for pictures in (same, []):
        with pytest.raises(ValueError, match=f"got {len(pictures)} pictures of one caption or none"):
            lexical_start(model, Letters(), pictures)


@pytest.mark.parametrize("options", [{"projector_hidden": 8}, {"projector_norm": True}])
def test_a_projector_without_a_closed_form_is_refused(tmp_path: Path, options: dict) -> None:
    found, names = features(1)
    pictures = [
        Captioned(patches=one, whole=one.expand(2, -1), caption=name) for one, name in zip(found, names, strict=True)
    ]
    with pytest.raises(ValueError, match="set projector_hidden and projector_norm off"):
        lexical_start(composed(tmp_path, **options), Letters(), pictures)
