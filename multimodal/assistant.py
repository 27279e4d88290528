"""The Python API: load a run or compose adapters, then ask about text, pictures and recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from encoders.sound import RATE, is_silent
from multimodal.batch import NO_TARGET, Batch
from multimodal.checkpoint import (
    PARTS,
    ImageParts,
    Parts,
    SpeechParts,
    check_backbone,
    check_encoder,
    load_weights,
    read_parts,
)
from multimodal.media import MediaReader
from multimodal.modality import Audio
from multimodal.model import MultimodalModel
from multimodal.prompt import Message, Prompt, PromptReader, Row, parts_of
from multimodal.transcription import OVERLAP, WINDOW, joined, most_tokens, windows
from text_backbone import Sampling, TextBackbone, Tokenizer, generate, load_backbone, load_tokenizer


class Assistant:
    """A composed model with its tokenizer.

    A prompt is text, an `Image`, an `Audio`, or a list of them in the order in which they are to be read. With
    `raw=True` the model reads begin-of-text and the prompt as it stands, as in adapter pretraining; otherwise the
    model's own chat form.
    """

    def __init__(
        self,
        model: MultimodalModel,
        tokenizer: Tokenizer,
        *,
        caption_prompt: str = "Image caption:",
        speech: SpeechParts | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.caption_prompt = caption_prompt
        """The words that stood between picture and caption when the image adapter was trained."""
        self.speech = speech
        """How the speech adapter was trained: the words that ask for a transcript or a translation."""
        self.media = MediaReader(model)
        self._prompts = PromptReader(tokenizer=tokenizer, vocabulary=model.text.config.vocabulary)

    def reply(self, prompt: Prompt, *, raw: bool = False, max_new: int = 128, sampling: Sampling | None = None) -> str:
        """The model's answer; greedy unless `sampling` says otherwise, at most `max_new` tokens."""
        return self.batch([prompt], raw=raw, max_new=max_new, sampling=sampling)[0]

    def stream(
        self, prompt: Prompt, *, raw: bool = False, max_new: int = 128, sampling: Sampling | None = None
    ) -> Iterator[str]:
        """The answer piece by piece, as it is made."""
        return self._stream(self._row(prompt, raw), max_new, sampling)

    def batch(
        self, prompts: Sequence[Prompt], *, raw: bool = False, max_new: int = 128, sampling: Sampling | None = None
    ) -> list[str]:
        """An answer for each prompt, all made side by side; prompts with and without pictures may be mixed."""
        if not prompts:
            return []
        rows = [self._row(prompt, raw) for prompt in prompts]
        answers: list[list[int]] = [[] for _ in rows]
        for tokens in self._generate(rows, max_new, sampling):
            for answer, token in zip(answers, tokens, strict=True):
                if token is not None:
                    answer.append(token)
        return [self.tokenizer.decode(answer).strip() for answer in answers]

    def caption(self, images: Sequence[Prompt], *, max_new: int = 32) -> list[str]:
        """A caption for each prompt (mostly one Image), asked for in the words of the adapter's training."""
        return self.batch([[*parts_of(image), self.caption_prompt] for image in images], raw=True, max_new=max_new)

    def transcribe(
        self,
        audios: Sequence[Audio],
        *,
        language: str = "English",
        translate: bool = False,
        window: float = WINDOW,
        overlap: float = OVERLAP,
        batch: int = 16,
    ) -> list[str]:
        """What is said in each recording, or with `translate` its translation, in `language`; "" where there is
        silence.

        Asked for in the words of the adapter's training. Recordings longer than `window` seconds are read in windows
        that share `overlap` seconds, and joined where their texts agree.
        """
        if self.speech is None:
            raise ValueError(f"the model's adapters are {sorted(self.model.adapters)}, not 'speech': it cannot hear")
        asked = self.speech
        prompt = (asked.translation_prompt if translate else asked.prompt).format(language=language)
        parts = [windows(audio.open(), window=window, overlap=overlap) for audio in audios]
        said = {(i, j): "" for i, one in enumerate(parts) for j, part in enumerate(one) if not is_silent(part)}
        # Those that are transcribed together are about equally long.
        order = sorted(said, key=lambda at: len(parts[at[0]][at[1]]))
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            prompts = [[prompt, Audio(parts[i][j], sampling_rate=RATE)] for i, j in chosen]
            longest = max(len(parts[i][j]) for i, j in chosen) / RATE
            texts = self.batch(prompts, raw=True, max_new=most_tokens(longest))
            said.update(zip(chosen, texts, strict=True))
        return [joined([said.get((i, j), "") for j in range(len(one))]) for i, one in enumerate(parts)]

    def prepared(self, prompts: Sequence[Prompt], *, raw: bool = False) -> Batch:
        """The prompts as the batch that the model reads, for those who want tensors: `assistant.model(batch, ...)`."""
        return self.media.batch([self._row(prompt, raw) for prompt in prompts])

    def chat(self, *, system: str | None = None) -> Chat:
        """A conversation that remembers its turns and its pictures."""
        return Chat(self, system=system)

    @torch.no_grad()
    def logits(self, prompt: Prompt, raw: bool = False) -> tuple[Int[Tensor, "T"], Float[Tensor, "T V"]]:
        """The prompt's tokens and the logits at every one of them, so that anyone can check us against another model.

        A picture stands in the tokens as one id, the vocabulary's size.
        """
        batch = self.prepared([prompt], raw=raw)
        return batch.tokens[0], self.model(batch, every_position=True)[0]

    @torch.no_grad()
    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Float[Tensor, "n"]:
        """How likely each answer is after its prompt, as it stands: the mean log-probability (nats) of its tokens.

        The end-of-text after the answer is one of them.
        """
        rows = [self._prompts.raw(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        batch = self.media.batch(rows)
        asked = batch.targets != NO_TARGET
        nats = -F.cross_entropy(self.model(batch).float(), batch.targets[asked], reduction="none")
        row = asked.nonzero()[:, 0]
        return nats.new_zeros(len(rows)).index_add(0, row, nats) / asked.sum(-1)

    def detach(self) -> TextBackbone:
        """The plain text model, as it was before anything was attached."""
        return self.model.text

    def answer(self, messages: Sequence[Message], *, max_new: int, sampling: Sampling | None) -> Iterator[str]:
        """Streams the assistant's next turn in a conversation of messages whose content is text or a list of parts."""
        return self._stream(self._prompts.dialog(messages), max_new, sampling)

    def _row(self, prompt: Prompt, raw: bool) -> Row:
        if raw:
            return self._prompts.raw(prompt)
        return self._prompts.dialog([{"role": "user", "content": parts_of(prompt)}])

    def _stream(self, row: Row, max_new: int, sampling: Sampling | None) -> Iterator[str]:
        tokens = (token for (token,) in self._generate([row], max_new, sampling) if token is not None)
        return self.tokenizer.pieces(tokens)

    @torch.no_grad()
    def _generate(self, rows: Sequence[Row], max_new: int, sampling: Sampling | None) -> Iterator[list[int | None]]:
        """For every step a token for each row, None where the row has ended."""
        batch = self.media.batch(rows)
        memory = self.model.remember(batch)
        last = batch.lengths - 1
        # What follows sees what the prompt's last token sees.
        sees = batch.sees[torch.arange(len(rows), device=last.device), last][:, None]
        steps = generate(
            self.model.text,
            batch.tokens,
            batch.lengths,
            before_prompt=self.model.before(memory, batch.sees),
            before_next=self.model.before(memory, sees),
            embeds=self.model.embeds(batch.tokens, self.model.listen(batch)),
            sampling=sampling or Sampling(),
            stops=self.tokenizer.stops,
            max_new=max_new,
        )
        for tokens, alive in steps:
            pairs = zip(tokens.tolist(), alive.tolist(), strict=True)
            yield [token if on and token not in self.tokenizer.stops else None for token, on in pairs]


class Chat:
    """A conversation: every `say` is answered with all that was said and shown before it."""

    def __init__(self, assistant: Assistant, *, system: str | None = None) -> None:
        self._assistant = assistant
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def say(self, prompt: Prompt, *, max_new: int = 128, sampling: Sampling | None = None) -> str:
        """The assistant's answer to the next user turn."""
        return "".join(self.stream(prompt, max_new=max_new, sampling=sampling))

    def stream(self, prompt: Prompt, *, max_new: int = 128, sampling: Sampling | None = None) -> Iterator[str]:
        """The same piece by piece; a turn counts as said once it has been read to its end."""
        asked = [*self.messages, {"role": "user", "content": parts_of(prompt)}]
        pieces = []
        for piece in self._assistant.answer(asked, max_new=max_new, sampling=sampling):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces).strip()}]


def load(
    source: str | Path,
    adapters: Sequence[str | Path] = (),
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    allow_other_backbone: bool = False,
) -> Assistant:
    """An assistant from a run's folder, or from a backbone's folder (or hub id) with the runs whose adapters it shall
    wear.

    ValueError where a folder is neither, where two runs bring the same modality, or where an adapter was trained on
    another backbone (unless `allow_other_backbone`).
    """
    folder = Path(source)
    if (folder / PARTS).is_file():
        if adapters:
            backbone = read_parts(folder).text
            raise ValueError(
                f"{folder} is a run; to add adapters, load its backbone: load({backbone!r}, adapters=[...])"
            )
        runs, origin = [folder], read_parts(folder).text
    else:
        runs, origin = [Path(run) for run in adapters], str(source)
    parts = [read_parts(run) for run in runs]
    text = load_backbone(origin, dtype=dtype, device=device)
    for run, described in zip(runs, parts, strict=True):
        check_backbone(run, described, text, allow_other=allow_other_backbone)
    model = _compose(text, runs, parts).to(device)
    seeing = [described.caption_prompt for described in parts if described.image is not None]
    hearing = [described.speech for described in parts if described.speech is not None]
    return Assistant(
        model.requires_grad_(False),
        load_tokenizer(origin),
        caption_prompt=seeing[0] if seeing else "Image caption:",
        speech=hearing[0] if hearing else None,
    )


def _compose(text: TextBackbone, runs: Sequence[Path], parts: Sequence[Parts]) -> MultimodalModel:
    encoders, adapters, brought = {}, {}, {}
    for run, described in zip(runs, parts, strict=True):
        for name, medium in (("image", described.image), ("speech", described.speech)):
            if medium is None:
                continue
            if name in brought:
                raise ValueError(f"two runs bring {_an(name)} adapter: {brought[name][0]}, {run}; choose one")
            brought[name] = run, medium
            encoders[name], adapters[name] = image_parts(medium) if isinstance(medium, ImageParts) else ears(medium)
    model = MultimodalModel(text, encoders, adapters)
    for name, (run, medium) in brought.items():
        load_weights(run, model, only=name)
        check_encoder(run, medium, encoders[name])
    return model


def image_parts(parts: ImageParts):
    """The encoder and the (untrained) adapter that `parts` describe."""
    from adapters import ImageAdapter
    from encoders import ImageEncoder

    return ImageEncoder(parts.encoder), ImageAdapter(parts.adapter)


def ears(parts: SpeechParts):
    """The speech encoder and the (untrained) adapter that `parts` describe."""
    from adapters import SpeechAdapter
    from encoders import SpeechEncoder

    return SpeechEncoder(parts.encoder), SpeechAdapter(parts.adapter)


def _an(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
