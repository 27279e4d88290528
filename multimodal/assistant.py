"""The Python API: load a run or compose adapters, then ask about text and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multimodal.batch import Batch
from multimodal.checkpoint import PARTS, ImageParts, Parts, check_backbone, check_encoder, load_weights, read_parts
from multimodal.media import PictureReader
from multimodal.model import MultimodalModel
from multimodal.prompt import Message, Prompt, PromptReader, Row, parts_of
from text_backbone import Sampling, TextBackbone, Tokenizer, generate, load_backbone, load_tokenizer


class Assistant:
    """A composed model with its tokenizer.

    A prompt is text, an `Image`, or a list of both in the order in which they are to be read. With `raw=True` the model
    reads begin-of-text and the prompt as it stands, as in adapter pretraining; otherwise the model's own chat form.
    """

    def __init__(self, model: MultimodalModel, tokenizer: Tokenizer, *, caption_prompt: str = "Image caption:") -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.caption_prompt = caption_prompt
        """The words that stood between picture and caption when the image adapter was trained."""
        self.pictures = PictureReader(model)
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

    def prepared(self, prompts: Sequence[Prompt], *, raw: bool = False) -> Batch:
        """The prompts as the batch that the model reads, for those who want tensors: `assistant.model(batch, ...)`."""
        return self.pictures.batch([self._row(prompt, raw) for prompt in prompts])

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
        batch = self.pictures.batch(rows)
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
            embeds=self.model.embeds(batch.tokens),
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
    prompt = parts[0].caption_prompt if parts else "Image caption:"
    return Assistant(model.requires_grad_(False), load_tokenizer(origin), caption_prompt=prompt)


def _compose(text: TextBackbone, runs: Sequence[Path], parts: Sequence[Parts]) -> MultimodalModel:
    seeing = [(run, described.image) for run, described in zip(runs, parts, strict=True) if described.image is not None]
    if len(seeing) > 1:
        raise ValueError(f"two runs bring an image adapter: {', '.join(str(run) for run, _ in seeing)}; choose one")
    encoders, adapters = {}, {}
    for _, image in seeing:
        encoders["image"], adapters["image"] = image_parts(image)
    model = MultimodalModel(text, encoders, adapters)
    for run, image in seeing:
        load_weights(run, model)
        check_encoder(run, image, encoders["image"])
    return model


def image_parts(parts: ImageParts):
    """The encoder and the (untrained) adapter that `parts` describe."""
    from adapters import ImageAdapter
    from encoders import ImageEncoder

    return ImageEncoder(parts.encoder), ImageAdapter(parts.adapter)
