from pathlib import Path

import numpy as np
import pytest
import torch

from multimodal import Assistant, Audio, Image, load
from multimodal.checkpoint import SpeechParts, describe, save_parts, save_weights
from multimodal.evaluation.guarantee import text_unchanged
from multimodal.media import MediaReader
from multimodal.model import MultimodalModel
from tests.multimodal import hearing, tiny
from tests.multimodal.hearing import RATE, noise

ONE, OTHER = (Audio(noise(seed), RATE) for seed in (1, 2))


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whisper")


@pytest.fixture
def assistant(ears: Path) -> Assistant:
    model = hearing.composed(ears)
    parts = describe(model, text="")
    return Assistant(model, tiny.Letters(), speech=parts.speech)


def run_of(folder: Path, model: MultimodalModel, text: Path) -> Path:
    from dataclasses import replace

    from multimodal.checkpoint import text_fingerprint
    from text_backbone import load_backbone

    parts = replace(describe(model, text=str(text)), text_fingerprint=text_fingerprint(load_backbone(str(text))))
    save_parts(folder, parts)
    save_weights(folder, model)
    return folder


def test_a_recording_stands_in_the_tokens_as_its_rows_and_two_delimiters(assistant: Assistant) -> None:
    tokens, logits = assistant.logits(["ab", ONE, "c"], raw=True)
    ear = tiny.TEXT.vocabulary + 2
    rows = int((tokens == ear).sum())
    # 0.4 s are five rows of 80 ms.
    assert rows == 7
    assert tokens.tolist() == [0, *tiny.Letters().encode("ab"), *[ear] * 7, *tiny.Letters().encode("c")]
    assert logits.shape == (len(tokens), tiny.TEXT.vocabulary)


def test_what_is_heard_changes_what_follows_and_nothing_before(assistant: Assistant) -> None:
    (_, one), (_, other) = (assistant.logits(["ab", sound, "c"], raw=True) for sound in (ONE, OTHER))
    assert torch.equal(one[:4], other[:4])
    assert not torch.allclose(one[-1], other[-1], atol=1e-3)


def test_text_and_recordings_interleave_in_any_order(assistant: Assistant) -> None:
    forward = assistant.logits([ONE, "and", OTHER], raw=True)[1][-1]
    turned = assistant.logits([OTHER, "and", ONE], raw=True)[1][-1]
    assert not torch.allclose(forward, turned, atol=1e-3)
    chat = assistant.logits([ONE, "and", OTHER])
    assert (chat[0] == tiny.TEXT.vocabulary + 2).sum() == 14


def test_prompts_side_by_side_are_answered_as_alone(assistant: Assistant) -> None:
    prompts = [[ONE, "what"], "no recording", ["two ", OTHER, " of ", ONE], OTHER]
    together = assistant.batch(prompts, raw=True, max_new=6)
    assert together == [assistant.reply(prompt, raw=True, max_new=6) for prompt in prompts]
    assert len(set(together)) > 1


def test_text_alone_is_bit_for_bit_what_it_was(assistant: Assistant) -> None:
    batch = assistant.prepared(["some text", ["ahead", ONE, "behind"], "more"], raw=True)
    differences = text_unchanged(assistant.model, batch)
    assert set(differences.values()) == {0.0}
    assert {"beside_pictures", "before_first_picture", "cached_decode"} <= differences.keys()


def test_a_recording_without_ears_says_what_is_missing(ears: Path, tmp_path: Path) -> None:
    deaf = Assistant(tiny.composed(tmp_path), tiny.Letters())
    with pytest.raises(ValueError, match="no speech encoder; load it with a speech adapter"):
        deaf.reply([ONE], raw=True)
    with pytest.raises(ValueError, match=r"adapters are \['image'\], not 'speech': it cannot hear"):
        deaf.transcribe([ONE])


def test_silence_is_transcribed_as_nothing_and_never_asked_about(assistant: Assistant, monkeypatch) -> None:
    monkeypatch.setattr(assistant, "batch", lambda *_, **__: pytest.fail("the model was asked about silence"))
    assert assistant.transcribe([Audio(np.zeros(RATE, dtype=np.float32), RATE)]) == [""]


def test_empty_and_corrupt_recordings_are_errors_with_their_reason(assistant: Assistant) -> None:
    for source, message in ((b"", "is empty"), (b"RIFF....", "no recording that can be read")):
        with pytest.raises(ValueError, match=message):
            assistant.transcribe([Audio(source)])
        with pytest.raises(ValueError, match=message):
            assistant.reply([Audio(source), "what?"])


def test_a_recording_longer_than_the_text_models_context_points_to_transcribe(assistant: Assistant) -> None:
    with pytest.raises(ValueError, match=r"takes 252 places, the text model has 160; .* assistant\.transcribe"):
        assistant.reply([Audio(noise(1, 20.0), RATE)], raw=True)


def test_a_long_recording_is_read_in_windows_that_overlap(assistant: Assistant, monkeypatch) -> None:
    asked: list[float] = []

    def answer(prompts, **_) -> list[str]:
        asked.extend(len(prompt[1].open()) / RATE for prompt in prompts)
        return ["so it goes"] * len(prompts)

    monkeypatch.setattr(assistant, "batch", answer)
    long = Audio(np.tile(noise(1, 1.0), 3600)[: 100 * RATE], RATE)
    [text] = assistant.transcribe([long], window=28.0, overlap=4.0)
    assert sorted(asked) == [4.0, 28.0, 28.0, 28.0, 28.0] or sorted(asked) == [28.0] * 4
    assert text == "so it goes"


def test_an_hour_at_8_khz_goes_through_in_windows(assistant: Assistant, monkeypatch) -> None:
    count = 0

    def answer(prompts, **_) -> list[str]:
        nonlocal count
        count += len(prompts)
        return [f"part{count}"] * len(prompts)

    monkeypatch.setattr(assistant, "batch", answer)
    hour = np.tile(noise(1, 1.0)[::2], 3600)
    [text] = assistant.transcribe([Audio(hour, 8_000)])
    assert count == 150
    assert text.startswith("part")


def test_the_words_of_training_ask_for_transcript_and_translation(assistant: Assistant, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        assistant, "batch", lambda prompts, **_: asked.extend(p[0] for p in prompts) or [""] * len(prompts)
    )
    assistant.transcribe([ONE], language="Dutch")
    assistant.transcribe([ONE], language="English", translate=True)
    assert asked == ["Repeat after me in Dutch:", "Translate the following sentence into English:"]


def test_a_run_comes_back_as_it_was_saved(ears: Path, text_folder: Path, tmp_path: Path) -> None:
    model = hearing.composed(ears)
    run = run_of(tmp_path / "run", model, text_folder)
    loaded = load(run)
    assert isinstance(loaded.speech, SpeechParts)
    expected = Assistant(model, loaded.tokenizer).logits([ONE, "what"], raw=True)[1]
    assert torch.equal(loaded.logits([ONE, "what"], raw=True)[1], expected)


def test_two_adapters_trained_apart_answer_as_each_does_alone(ears: Path, text_folder: Path, tmp_path: Path) -> None:
    sees = run_of(tmp_path / "sees", tiny.composed(tmp_path / "eye"), text_folder)
    hears = run_of(tmp_path / "hears", hearing.composed(ears), text_folder)
    both = load(text_folder, adapters=[sees, hears])
    picture = Image(tiny.photo(3))
    for alone, prompt in ((load(sees), [picture, "what"]), (load(hears), ["say", ONE]), (load(sees), "text alone")):
        assert torch.equal(alone.logits(prompt, raw=True)[1], both.logits(prompt, raw=True)[1])
        assert alone.reply(prompt, raw=True, max_new=5) == both.reply(prompt, raw=True, max_new=5)
    # A spoken question about a picture: both change the answer.
    asked = [both.logits([picture, sound], raw=True)[1][-1] for sound in (ONE, OTHER)]
    shown = both.logits([Image(tiny.photo(4)), ONE], raw=True)[1][-1]
    assert not torch.allclose(*asked, atol=1e-4)
    assert not torch.allclose(asked[0], shown, atol=1e-4)
    with pytest.raises(ValueError, match="two runs bring a speech adapter"):
        load(text_folder, adapters=[hears, hears])


def test_known_recordings_are_not_encoded_again(ears: Path) -> None:
    model = hearing.composed(ears)
    media = MediaReader(model, keep=1)
    [one] = media.sounds([ONE])
    calls = []
    model.encoders["speech"].register_forward_hook(lambda *_: calls.append(1))
    assert media.sounds([Audio(noise(1), RATE)])[0] is one
    assert not calls
    media.sounds([OTHER])
    media.sounds([ONE])
    assert len(calls) == 2


def test_an_encoder_of_other_weights_is_refused(ears: Path, text_folder: Path, tmp_path: Path) -> None:
    from tests.encoders import speech_making

    own = speech_making.whisper(tmp_path / "own")
    run = run_of(tmp_path / "run", hearing.composed(own), text_folder)
    speech_making.whisper(own, seed=1)
    with pytest.raises(ValueError, match="was trained on speech encoder"):
        load(run)
