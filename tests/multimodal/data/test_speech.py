from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters import SpeechAdapter
from encoders import SpeechEncoder
from multimodal.batch import NO_TARGET
from multimodal.data.loader import LoaderConfig
from multimodal.data.speech import SpeechData, at_speed, drawn, fill_speech, masked, speech_loader, speech_sources
from multimodal.data.tolerance import TooManyBadSamples
from multimodal.model import MultimodalModel
from tests.multimodal import hearing, tiny

TEXTS = [f"say it {word}!" for word in ("loud", "soft", "now", "then", "here", "there", "once", "again")]


@pytest.fixture
def model(tmp_path: Path) -> MultimodalModel:
    return hearing.composed(tmp_path / "whisper")


def data_of(folder: Path, **changes) -> SpeechData:
    values = {"train": (str(folder),), "batch": 4, "bucket": 2, "reading": LoaderConfig(workers=0)}
    return SpeechData(**(values | changes))


def loader_of(model: MultimodalModel, data: SpeechData, **more):
    encoder, adapter = model.encoders["speech"], model.adapters["speech"]
    assert isinstance(encoder, SpeechEncoder)
    assert isinstance(adapter, SpeechAdapter)
    return speech_loader(data, speech_sources(data), tiny.reader(), encoder, adapter, pad=1, **more)


def batches(model: MultimodalModel, data: SpeechData, count: int = 2, **more) -> list:
    return [loaded.batch for loaded in loader_of(model, data, **more).batches(0, stop=count * data.batch)]


def fill(model: MultimodalModel, data: SpeechData) -> int:
    encoder = model.encoders["speech"]
    assert isinstance(encoder, SpeechEncoder)
    return sum(1 for _ in fill_speech(data, speech_sources(data), encoder))


def texts(batch, tokens=None) -> list[str]:
    rows = batch.targets if tokens is None else tokens
    return [tiny.Letters().decode(row[row != NO_TARGET].tolist()) for row in rows]


def test_a_recording_is_asked_for_its_words_and_answered_with_them(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS, language="Dutch")
    found = [text for batch in batches(model, data_of(tmp_path / "s")) for text in texts(batch)]
    assert sorted(found) == sorted(f" say it {text.split()[2][:-1]}" for text in TEXTS)
    [first, *_] = batches(model, data_of(tmp_path / "s"))
    assert all(text.startswith("Repeat after me in Dutch:") for text in texts(first, first.tokens))


def test_transcripts_may_be_learned_as_they_are_written(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    [first, _] = batches(model, data_of(tmp_path / "s", written=True))
    assert all(text.endswith("!") for text in texts(first))


def test_a_translation_is_asked_for_in_the_answers_language_alone(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS, language="Czech", translations={"English": "Hi there."})
    [first, _] = batches(model, data_of(tmp_path / "s", tasks=(("translate", 1.0),)))
    assert set(texts(first)) == {" hi there"}
    asked = texts(first, first.tokens)
    assert all(text.startswith("Translate the following sentence into English:") for text in asked)


def test_spoken_dialogue_has_no_prompt_but_the_recording(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS, reply="Hello.")
    [first, _] = batches(model, data_of(tmp_path / "s", tasks=(("dialogue", 1.0),)))
    assert set(texts(first)) == {"Hello."}
    # Begin, user, the recording, end, assistant: nothing else stands before the answer.
    ear = tiny.TEXT.vocabulary + 2
    row = first.tokens[0].tolist()
    spoken_at = [i for i, token in enumerate(row) if token == ear]
    assert row[: spoken_at[0]] == [0, 2]
    assert row[spoken_at[-1] + 1 : spoken_at[-1] + 3] == [1, 3]


def test_tasks_are_mixed_by_their_weights_among_those_that_have_an_answer() -> None:
    random = torch.Generator().manual_seed(0)
    counts = [0, 0, 0]
    for _ in range(2000):
        counts[drawn([1.0, 2.0, 1.0], random)] += 1
    assert 900 < counts[1] < 1100
    assert drawn([5.0], random) == 0


def test_cached_features_make_the_batches_that_sounds_make(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    plain, cached = data_of(tmp_path / "s"), data_of(tmp_path / "s", cache=str(tmp_path / "cache"))
    fill(model, cached)
    for one, other in zip(batches(model, plain), batches(model, cached), strict=True):
        assert one.heard is not None
        assert other.speech is not None
        assert torch.equal(one.tokens, other.tokens)
        assert one.keys == other.keys
        with torch.no_grad():
            expected, _ = model.encoders["speech"](one.heard, one.sizes)
        torch.testing.assert_close(other.speech.float(), expected, atol=0.03, rtol=0.02)


def test_other_speeds_are_views_of_their_own(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    data = data_of(tmp_path / "s", cache=str(tmp_path / "cache"), speeds=(0.8, 1.25))
    fill(model, data)
    sizes = {int(size) for batch in batches(model, data, count=12) for size in batch.sizes}
    # 0.3 to 0.5 s in steps of 0.05, as they are and at both speeds.
    expected = {
        -(-round(seconds / speed * 50, 6) // 1) for seconds in (0.3, 0.35, 0.4, 0.45, 0.5) for speed in (0.8, 1, 1.25)
    }
    assert len(sizes) > 8
    assert all(min(abs(size - one) for one in expected) <= 1 for size in sizes)


def test_speed_changes_length_and_pitch() -> None:
    wave = torch.sin(2 * torch.pi * 400 * torch.arange(16_000) / 16_000)
    fast = at_speed(wave, 1.25)
    assert len(fast) == 12_800
    assert abs(int(torch.fft.rfft(fast, n=16_000).abs().argmax()) - 500) <= 1
    assert at_speed(wave, 1.0) is wave


def test_masks_silence_spans_of_time_and_bands_and_nothing_else() -> None:
    frames = torch.randn(100, 80)
    random = torch.Generator().manual_seed(5)
    hidden = masked(frames, 0.4, random, bands=10)
    changed = hidden != frames
    rows, columns = changed.all(1), changed.all(0)
    assert 0 < int(rows.sum()) <= 40
    assert int(columns.sum()) <= 10
    assert bool((changed == (rows[:, None] | columns)).all())
    assert masked(frames, 0.0, random) is frames


def test_a_teachers_rows_have_the_transcript_in_the_recordings_place(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    [first, _] = batches(model, data_of(tmp_path / "s"), scripted=True)
    assert first.script is not None
    assert texts(first.script) == texts(first)
    assert all(said.strip() in read for said, read in zip(texts(first), texts(first, first.script.tokens), strict=True))
    assert int((first.script.tokens >= tiny.TEXT.vocabulary).sum()) == 0


def test_broken_and_overlong_recordings_are_counted_and_too_many_stop_the_run(
    model: MultimodalModel, tmp_path: Path
) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    short = data_of(tmp_path / "s", longest=0.42, reading=LoaderConfig(workers=0, max_bad_share=1.0))
    loader = loader_of(model, short)
    list(loader.batches(0, stop=8))
    assert loader.tolerance.skipped == {"too_long": 2}
    with pytest.raises(TooManyBadSamples, match="too_long"):
        list(loader_of(model, replace(short, longest=0.1, reading=LoaderConfig(workers=0))).batches(0, stop=800))


def test_an_encoder_that_learns_is_not_cached(model: MultimodalModel, tmp_path: Path) -> None:
    hearing.shard(tmp_path / "s", TEXTS)
    model.encoders["speech"].requires_grad_(True)
    with pytest.raises(ValueError, match="the speech encoder learns, so its features cannot be cached"):
        fill(model, data_of(tmp_path / "s", cache=str(tmp_path / "cache")))


def test_settings_that_cannot_be_say_why() -> None:
    with pytest.raises(ValueError, match=r"speeds must lie between 0\.5 and 2"):
        SpeechData(train=("x",), speeds=(3.0,))
    with pytest.raises(ValueError, match="masks is a share"):
        SpeechData(train=("x",), masks=1.0)
    with pytest.raises(ValueError, match="no training shards are named"):
        speech_sources(SpeechData(train=()))
