from pathlib import Path

import pytest
import torch
from transformers import WhisperModel

from encoders import SpeechEncoder, SpeechEncoderConfig
from encoders.sound import RATE
from tests.encoders import speech_making

MAKERS = {"whisper": speech_making.whisper, "wav2vec2": speech_making.wav2vec2, "w2v-bert": speech_making.w2v_bert}


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def made(kind: str, folder: Path) -> SpeechEncoder:
    return SpeechEncoder(SpeechEncoderConfig(name=f"hf/{MAKERS[kind](folder)}"))


def run(encoder: SpeechEncoder, *sounds: torch.Tensor) -> list[torch.Tensor]:
    heard = [encoder.prepare(sound) for sound in sounds]
    features, counts = encoder(torch.cat(heard), torch.tensor([len(one) for one in heard]))
    return list(features.split(counts.tolist()))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_recording_has_the_same_features_alone_and_in_a_batch(kind: str, tmp_path: Path) -> None:
    encoder = made(kind, tmp_path)
    sounds = [noise(9_000, 1), noise(16_123, 2), noise(3_001, 3), noise(9_000, 4)]
    for together, sound in zip(run(encoder, *sounds), sounds, strict=True):
        [alone] = run(encoder, sound)
        assert together.shape == alone.shape
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_number_of_features_is_known_without_computing_them(kind: str, tmp_path: Path) -> None:
    encoder = made(kind, tmp_path)
    for samples in (1, 160, 161, 1_000, 8_000, 16_001):
        heard = encoder.prepare(noise(samples))
        [features] = run(encoder, noise(samples))
        assert features.shape == (encoder.frames(len(heard)), encoder.width)


def test_whisper_on_30_seconds_is_transformers_whisper(tmp_path: Path) -> None:
    encoder = made("whisper", tmp_path)
    sound = noise(30 * RATE)
    theirs = WhisperModel.from_pretrained(tmp_path).encoder(encoder.prepare(sound).T[None]).last_hidden_state[0]
    [ours] = run(encoder, sound)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_longer_than_whisper_hears_at_once_is_heard_window_by_window(tmp_path: Path) -> None:
    encoder = made("whisper", tmp_path)
    heard = encoder.prepare(noise(31 * RATE))
    features, counts = encoder(heard, torch.tensor([len(heard)]))
    assert counts.tolist() == [encoder.frames(len(heard))] == [1550]
    second, _ = encoder(heard[3000:], torch.tensor([100]))
    torch.testing.assert_close(features[1500:], second, atol=1e-5, rtol=1e-4)


def test_an_encoder_is_frozen_until_it_is_asked_to_learn(tmp_path: Path) -> None:
    encoder = made("whisper", tmp_path).train()
    heard = encoder.prepare(noise(4_000))
    assert not encoder.tower.training
    assert not encoder(heard, torch.tensor([len(heard)]))[0].requires_grad
    encoder.tower.requires_grad_(True)
    assert encoder.train().tower.training
    assert encoder(heard, torch.tensor([len(heard)]))[0].requires_grad


def test_what_is_no_speech_model_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"write hf/<id or folder> or conformer/<folder>"):
        SpeechEncoder(SpeechEncoderConfig(name="whisper"))
    with pytest.raises(ValueError, match=r"cannot be loaded as a Hugging Face speech model"):
        SpeechEncoder(SpeechEncoderConfig(name=f"hf/{tmp_path}"))
