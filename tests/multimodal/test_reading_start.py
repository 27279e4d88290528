from pathlib import Path

import pytest
import torch

from adapters import SpeechAdapter
from encoders import SpeechEncoder
from multimodal.batch import Batch, Item, Sound, collate
from multimodal.model import MultimodalModel
from multimodal.pieces import choose_pieces
from multimodal.reading_start import Reading, reading_loss, spread_features
from tests.multimodal import hearing, tiny

TEXTS = ("abba", "cab", "a bad cab", "bead")


@pytest.fixture
def model(tmp_path: Path) -> MultimodalModel:
    return hearing.composed(tmp_path)


def reading_of(model: MultimodalModel) -> Reading:
    adapter, encoder = model.adapters["speech"], model.encoders["speech"]
    assert isinstance(adapter, SpeechAdapter)
    pieces = choose_pieces(tiny.Letters(), TEXTS, least=1)
    return Reading(adapter, encoder, model.text, tiny.Letters(), pieces)


def batch_of(model: MultimodalModel, texts: tuple[str, ...] = TEXTS, *, frames: int = 96) -> Batch:
    adapter = model.adapters["speech"]
    assert isinstance(adapter, SpeechAdapter)
    items = []
    for i, text in enumerate(texts):
        count = frames + 8 * i
        features = torch.randn(count, 32, generator=torch.Generator().manual_seed(i))
        row = tiny.reader().raw(["say", hearing_audio()], answer=f" {text}")
        items.append(Item(row=row, sounds=(Sound(rows=adapter.rows(count), features=features),), key=text))
    return collate(items, pad=1)


def hearing_audio():
    from multimodal.modality import Audio

    return Audio(b"not opened")


def test_rows_that_are_a_texts_embeddings_are_read_as_the_text(model: MultimodalModel, monkeypatch) -> None:
    reading = reading_of(model)
    said = [[0, *[p + 1 for p in reading.pieces.of(text)], 0] for text in TEXTS]
    # Equal neighbours are two pieces only where a pause stands between them.
    said[0] = [0, *[x for p in reading.pieces.of(TEXTS[0]) for x in (p + 1, 0)]]
    table = torch.cat([reading.pause[None], reading.table])
    monkeypatch.setattr(reading.adapter, "between", lambda *_: [table[torch.tensor(row)] for row in said])
    assert reading.read(batch_of(model)) == list(TEXTS)


def test_a_score_falls_with_the_distance_to_the_embedding(model: MultimodalModel) -> None:
    reading = reading_of(model)
    batch = batch_of(model)
    assert batch.speech is not None
    assert batch.sizes is not None
    rows = torch.cat(reading.adapter.between(batch.speech, batch.sizes))
    table = torch.cat([reading.pause[None], reading.table])
    expected = (-0.5 * reading.sharpness.exp() * torch.cdist(rows, table).square()).log_softmax(-1)
    scores, strays, counts = reading(batch)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)
    assert sum(counts) == len(rows)
    there = (scores.exp() * torch.cdist(rows, table).square()).sum(-1)
    torch.testing.assert_close(strays, there, atol=1e-3, rtol=1e-3)


def test_the_loss_is_what_is_left_when_all_ways_to_write_the_text_are_summed(model: MultimodalModel) -> None:
    reading = reading_of(model)
    batch = batch_of(model, ("ab",), frames=12)
    scores, strays, _ = reading(batch)
    wanted = [piece + 1 for piece in reading.pieces.of("ab")]
    K = len(scores)
    total = torch.zeros((), dtype=torch.float64)
    # Every row says one of four things: a brute-force sum over what collapses to the text.
    used = sorted({0, *wanted})
    for ways in torch.cartesian_prod(*[torch.tensor(used)] * K).tolist():
        collapsed = [p for p in torch.unique_consecutive(torch.tensor(ways)).tolist() if p]
        if collapsed == wanted:
            total += scores.double()[torch.arange(K), torch.tensor(ways)].sum().exp()
    loss, count = reading_loss(reading, batch)
    torch.testing.assert_close((loss - 0.05 * strays.sum()).double(), -total.log(), atol=1e-3, rtol=1e-4)
    assert count == len(wanted)


def test_answers_are_read_without_their_stop_token(model: MultimodalModel) -> None:
    assert [text.strip() for text in reading_of(model).answers(batch_of(model))] == list(TEXTS)


def test_a_text_too_long_for_its_recording_counts_nothing(model: MultimodalModel) -> None:
    reading = reading_of(model)
    loss, count = reading_loss(reading, batch_of(model, ("abba" * 10,), frames=4))
    assert (float(loss), count) == (0.0, 0)
    both = reading_loss(reading, batch_of(model, ("ab", "abba" * 30), frames=40))
    assert both[1] == len(reading.pieces.of("ab"))


def test_reading_is_learned_and_the_text_model_is_not_asked(model: MultimodalModel, monkeypatch) -> None:
    monkeypatch.setattr(model.text, "run", lambda *_, **__: pytest.fail("the text model ran"))
    reading = reading_of(model)
    reading.start()
    batch = batch_of(model)
    assert batch.sizes is not None
    spread_features(reading.adapter, [batch], model.encoders["speech"])
    optimizer = torch.optim.Adam(reading.parameters(), lr=5e-3)
    losses = []
    for _ in range(100):
        loss, count = reading_loss(reading, batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(float(loss.detach()) / count)
    assert losses[-1] < 0.5 * losses[0]
    assert sum(one == text for one, text in zip(reading.read(batch), TEXTS, strict=True)) >= 3
    # What is read lies where the text model's own embeddings lie.
    rows = torch.cat(reading.adapter.between(batch.speech, batch.sizes))
    nearest = torch.cdist(rows, torch.cat([reading.pause[None], reading.table])).min(-1).values
    spread = torch.cdist(reading.table, reading.table).max()
    assert float(nearest.mean()) < 0.5 * float(spread)


def test_spread_features_have_mean_0_and_deviation_1(model: MultimodalModel) -> None:
    adapter, encoder = model.adapters["speech"], model.encoders["speech"]
    assert isinstance(adapter, SpeechAdapter)
    assert isinstance(encoder, SpeechEncoder)
    batch = batch_of(model)
    assert batch.speech is not None
    assert batch.sizes is not None
    spread_features(adapter, [None, batch], encoder)
    rows = torch.cat([adapter.stacked(one) for one in batch.speech.split(batch.sizes.tolist())])
    torch.testing.assert_close(rows.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(64), atol=5e-3, rtol=0)
    with pytest.raises(ValueError, match="no recording of the first batches"):
        spread_features(adapter, [None], encoder)
