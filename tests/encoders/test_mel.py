import pytest
import torch
from transformers import WhisperFeatureExtractor

from encoders.mel import log_mel, mel_frames, whisper_mel
from encoders.sound import RATE


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [300, 1600, 16_123, 5 * RATE])
def test_whispers_frames_are_those_of_its_own_extractor_without_the_silence_behind(samples: int) -> None:
    sound = noise(samples)
    theirs = WhisperFeatureExtractor(feature_size=80)(sound.numpy(), sampling_rate=RATE, return_tensors="pt")
    ours = whisper_mel(sound)
    assert len(ours) == mel_frames(samples)
    torch.testing.assert_close(ours, theirs.input_features[0].T[: len(ours)], atol=2e-4, rtol=0)


def test_silence_behind_a_recording_changes_no_frame_of_it() -> None:
    sound = noise(4000)
    longer = torch.cat([sound, torch.zeros(RATE)])
    torch.testing.assert_close(log_mel(sound), log_mel(longer)[:25])


def test_a_recording_of_one_sample_has_one_frame_and_one_of_none_is_an_error() -> None:
    assert log_mel(torch.ones(1)).shape == (1, 80)
    with pytest.raises(ValueError, match="no sound"):
        log_mel(torch.zeros(0))
