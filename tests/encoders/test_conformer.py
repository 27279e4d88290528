from dataclasses import replace

import pytest
import torch

from encoders import SpeechEncoder, SpeechEncoderConfig
from encoders.conformer import Conformer, ConformerConfig

SMALL = ConformerConfig(bands=8, width=24, layers=2, heads=2, feed_forward=40, kernel=5)


def frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, SMALL.bands, generator=torch.Generator().manual_seed(seed))


def test_the_papers_encoder_has_a_billion_parameters() -> None:
    with torch.device("meta"):
        paper = Conformer(ConformerConfig())
    layers = sum(weight.numel() for weight in paper.layers.parameters())
    assert abs(layers / 24 - 41.7e6) < 0.1e6
    assert abs(sum(weight.numel() for weight in paper.parameters()) - 1.0e9) < 5e6
    assert paper.milliseconds == 40.0


def test_a_recording_has_the_same_features_alone_and_in_a_batch() -> None:
    conformer = Conformer(SMALL).eval()
    recordings = [frames(count, seed) for seed, count in enumerate((37, 100, 3, 64))]
    for together, one in zip(conformer(recordings), recordings, strict=True):
        [alone] = conformer([one])
        assert together.shape == alone.shape == (conformer.frames(len(one)), SMALL.width)
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_features_know_what_stands_before_and_behind_them() -> None:
    conformer = Conformer(SMALL).eval()
    one, other = frames(80), frames(80)
    other[-1] += 5
    first, last = ([conformer([x])[0][at] for x in (one, other)] for at in (0, -1))
    assert not torch.allclose(*first, atol=1e-5)
    assert not torch.allclose(*last, atol=1e-5)


def test_bands_are_normalised_over_the_training_recordings() -> None:
    conformer = Conformer(SMALL)
    recordings = [3 * frames(200, seed) + torch.arange(8) for seed in range(3)]
    conformer.measure(recordings)
    normal = conformer.normalised(torch.cat(recordings))
    torch.testing.assert_close(normal.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0), torch.ones(8), atol=1e-4, rtol=0)
    assert {"mean", "deviation"} <= conformer.state_dict().keys()


def test_recomputed_layers_give_the_same_gradients() -> None:
    conformer = Conformer(SMALL)
    recordings = [frames(50), frames(20, 1)]
    gradients = []
    for recompute in (False, True):
        conformer.recompute = recompute
        conformer.zero_grad()
        features = torch.cat(conformer(recordings))
        features.backward(torch.linspace(-1, 1, features.numel()).view_as(features))
        gradients.append([weight.grad.clone() for weight in conformer.parameters() if weight.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert len(gradients[0]) == len(list(conformer.parameters()))


def test_it_stands_behind_the_face_of_every_speech_encoder() -> None:
    encoder = SpeechEncoder(SpeechEncoderConfig(name="conformer/x"), tower=Conformer(replace(SMALL, bands=80)))
    heard = encoder.prepare(torch.randn(16_000))
    features, counts = encoder(heard, torch.tensor([len(heard)]))
    assert features.shape == (25, 24)
    assert counts.tolist() == [encoder.frames(100)] == [25]


def test_shapes_that_cannot_be_say_why() -> None:
    for changes, message in (({"heads": 5}, "twice the heads"), ({"kernel": 4}, "odd"), ({"layers": 0}, "at least 1")):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **changes)
