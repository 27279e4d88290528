"""A test of hearing: recordings of shards, what a model says of each, of a wrong one and of none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.sound import RATE, read_sound
from multimodal.assistant import Assistant
from multimodal.data.recordings import Recording, ShardRecordings
from multimodal.data.spoken import spoken
from multimodal.evaluation.controls import wrong_medium
from multimodal.modality import Audio

_ENGLISH = 51864
"""Tokens of the Whispers that know English only."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """The model's answers to a test's recordings, and to its controls, in the order of the recordings."""

    right: list[str]
    wrong_medium: list[str]
    no_medium: list[str]


def read_recordings(patterns: str | Path | Sequence[str | Path], *, most: int = 0) -> list[Recording]:
    """The recordings of shards that have a word to be heard; the first `most` unless that is 0."""
    source = ShardRecordings(patterns)
    found: list[Recording] = []
    for index in range(len(source)):
        one = source.get(index)
        if one is not None and spoken(one.text):
            found.append(one)
        if len(found) == most:
            break
    if not found:
        raise ValueError(f"{patterns} holds no recording with a transcript")
    return found


def transcripts(
    assistant: Assistant, recordings: Sequence[Recording], references: Sequence[str], *, into: str = ""
) -> Heard:
    """Greedy transcripts (or translations `into` a language) of each recording, of another's recording, of none."""
    languages = [into or one.language for one in recordings]
    said = [""] * len(recordings)
    for language in sorted(set(languages)):
        asked = [i for i, name in enumerate(languages) if name == language]
        audios = [Audio(recordings[i].sound) for i in asked]
        for i, text in zip(asked, assistant.transcribe(audios, language=language, translate=bool(into)), strict=True):
            said[i] = text
    # Greedy answers to a recording are the same whoever is asked about it: the wrong one's are known already.
    wrong = wrong_medium([spoken(text) for text in references])
    return Heard(
        right=said, wrong_medium=[said[i] for i in wrong], no_medium=_nothing(assistant, languages, bool(into))
    )


def _nothing(assistant: Assistant, languages: Sequence[str], translate: bool) -> list[str]:
    """What the prompt alone makes the model say."""
    assert assistant.speech is not None
    prompt = assistant.speech.translation_prompt if translate else assistant.speech.prompt
    kinds = sorted(set(languages))
    said = assistant.batch([prompt.format(language=one) for one in kinds], raw=True, max_new=32)
    return [dict(zip(kinds, said, strict=True))[language] for language in languages]


def seconds(recording: Recording) -> float:
    return len(read_sound(recording.sound)) / RATE


def player(recording: Recording) -> bytes:
    """The recording as a browser plays it: Ogg Vorbis, one channel."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, read_sound(recording.sound).numpy(), RATE, format="OGG", subtype="VORBIS")
    return stream.getvalue()


def own_decoder(folder: Path, recordings: Sequence[Recording], *, batch: int = 8, longest: int = 96) -> list[str]:
    """What the Whisper in `folder` writes itself of the recordings, greedy, with its own preprocessing (windows of
    30 s): the yardstick for an adapter on its encoder.
    """
    # Here: only this baseline needs the whole of Whisper.
    import torch
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extract, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    settings, no_times = model.generation_config, tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    many = model.config.vocab_size > _ENGLISH
    said: list[str] = []
    for start in range(0, len(recordings), batch):
        chosen = recordings[start : start + batch]
        sounds = [read_sound(one.sound).numpy() for one in chosen]
        features = extract(sounds, sampling_rate=RATE, return_tensors="pt").input_features
        tokens = torch.tensor(
            [_begin(settings.decoder_start_token_id, tokenizer, one.language, many) for one in chosen]
        )
        with torch.no_grad():
            encoded, known = model.model.encoder(features), None
            for step in range(longest):
                fresh = tokens if known is None else tokens[:, -1:]
                made = model(encoder_outputs=encoded, decoder_input_ids=fresh, past_key_values=known, use_cache=True)
                scores, known = made.logits[:, -1], made.past_key_values
                scores[:, settings.suppress_tokens or []] = -torch.inf
                if step == 0:
                    scores[:, settings.begin_suppress_tokens or []] = -torch.inf
                # No timestamps, which stand behind the last of the control tokens.
                scores[:, no_times + 1 :] = -torch.inf
                following = scores.argmax(-1)
                # A row that has ended says nothing more.
                following[tokens[:, -1] == settings.eos_token_id] = settings.eos_token_id
                tokens = torch.cat([tokens, following[:, None]], dim=1)
                if bool((following == settings.eos_token_id).all()):
                    break
        said += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in said]


def _begin(start: int, tokenizer: Any, language: str, many: bool) -> list[int]:
    """The control tokens that ask for a transcript without times."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    words = [f"<|{TO_LANGUAGE_CODE[language.lower()]}|>", "<|transcribe|>"] if many else []
    return [start, *tokenizer.convert_tokens_to_ids([*words, "<|notimestamps|>"])]
