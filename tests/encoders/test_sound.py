import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encoders.sound import RATE, is_silent, read_sound


def tone(rate: int, seconds: float = 0.5, *, channels: int = 1, pitch: float = 440.0) -> np.ndarray:
    """A sine; every channel twice as loud as the one before."""
    wave = 0.1 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)
    return np.stack([wave * 2**i for i in range(channels)], axis=1).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_gives_the_same_sound_at_16_khz(kind: str) -> None:
    heard = read_sound(encoded(tone(44_100), 44_100, kind))
    plain = torch.from_numpy(tone(RATE)[:, 0])
    # Compression and resampling change samples, not what is heard; MP3 adds a little silence at its ends.
    spectrum, expected = (torch.fft.rfft(one, n=RATE).abs() for one in (heard, plain))
    assert int(spectrum.argmax()) == int(expected.argmax()) == 440
    assert abs(len(heard) - len(plain)) < 0.1 * RATE
    assert heard.dtype == torch.float32


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 48_000])
def test_any_rate_keeps_pitch_and_length(rate: int) -> None:
    heard = read_sound(encoded(tone(rate), rate, "WAV"))
    assert abs(len(heard) - RATE // 2) <= 1
    assert int(torch.fft.rfft(heard, n=RATE).abs().argmax()) == 440


def test_channels_are_averaged_whichever_axis_they_are_on() -> None:
    stereo = tone(RATE, channels=2)
    expected = torch.from_numpy(stereo.mean(1))
    for given in (stereo, stereo.T, torch.from_numpy(stereo)):
        torch.testing.assert_close(read_sound(given, RATE), expected)
    torch.testing.assert_close(read_sound(encoded(stereo, RATE, "WAV")), expected, atol=1e-4, rtol=0)


def test_whole_numbers_are_scaled_to_one() -> None:
    loud = np.array([0, 16384, -32768], dtype=np.int16)
    assert read_sound(loud, RATE).tolist() == [0.0, 0.5, -1.0]


def test_a_file_and_its_bytes_are_one_recording(tmp_path: Path) -> None:
    data = encoded(tone(8_000), 8_000, "WAV")
    (tmp_path / "a.wav").write_bytes(data)
    assert torch.equal(read_sound(tmp_path / "a.wav"), read_sound(data))


def test_what_cannot_be_heard_says_why(tmp_path: Path) -> None:
    wav = encoded(tone(RATE), RATE, "WAV")
    cases = [
        (b"", None, r"0 bytes is empty"),
        (b"no sound at all", None, r"no recording that can be read .* expected wav, flac, ogg or mp3"),
        (wav[:20], None, r"no recording that can be read"),
        (str(tmp_path / "none.wav"), None, r"none\.wav is not there"),
        (encoded(tone(RATE)[:0], RATE, "WAV"), None, r"holds no sound \(0 samples\)"),
        (np.zeros(0, dtype=np.float32), RATE, r"holds no sound"),
        (np.array([0.0, np.nan], dtype=np.float32), RATE, r"not finite"),
        (np.zeros(100, dtype=np.float32), None, r"needs its sampling_rate"),
        (np.zeros(100, dtype=np.float32), 1, r"has 1 samples a second; expected 1000 to"),
        (np.zeros((100, 100), dtype=np.float32), RATE, r"got shape \[100, 100\]"),
        (np.zeros(100, dtype=np.uint8), RATE, r"float, int16 or int32"),
        (wav, 8_000, r"has 16000 samples a second, not 8000"),
    ]
    for source, rate, message in cases:
        with pytest.raises(ValueError, match=message):
            read_sound(source, rate)


def test_too_long_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match=r"lasts 3600 seconds and is too long \(limit 60\)"):
        read_sound(np.zeros(3600 * RATE, dtype=np.float32), RATE, longest=60.0)
    with pytest.raises(ValueError, match=r"lasts 90 seconds and is too long \(limit 60\)"):
        read_sound(encoded(np.zeros(90 * 8_000, dtype=np.float32), 8_000, "FLAC"), longest=60.0)


def test_a_truncated_file_gives_what_there_is_or_says_so() -> None:
    wav = encoded(tone(RATE), RATE, "WAV")
    assert 0 < len(read_sound(wav[: len(wav) // 2])) <= RATE // 4


def test_silence_is_a_recording_of_which_nothing_is_heard() -> None:
    assert is_silent(read_sound(np.zeros(RATE, dtype=np.float32), RATE))
    assert not is_silent(read_sound(tone(RATE)[:, 0], RATE))
