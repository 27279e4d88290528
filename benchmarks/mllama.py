"""The same model twice: composed of our parts, and as transformers' Mllama; the same weights where both have the same
layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from adapters import ImageAdapter, ImageAdapterConfig
from encoders import ImageEncoder, ImageEncoderConfig
from encoders.llama_vision import LlamaVisionConfig, LlamaVisionTower
from multimodal.batch import NO_TARGET, Batch
from multimodal.frozen_stream import FrozenStream
from multimodal.model import MultimodalModel
from multimodal.training import Step, TrainingConfig, prepare, token_loss, train
from text_backbone import LlamaConfig, TextBackbone, generate

GATE = 0.5
"""All gates stand open, so that every branch counts."""
_LEARNS = ((r"adapters\.image\.(blocks|projector)\..*", 1.0),)
_TRAINING = TrainingConfig(learns=_LEARNS, steps=10**6, learning_rate=1e-4, warm_up=0, weight_decay=0.01)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes that both sides share."""

    vocabulary: int = 8192
    width: int = 512
    layers: int = 16
    """Self-attention blocks; the cross-attention blocks stand before those in `at`."""
    at: tuple[int, ...] = (3, 7, 11, 15)
    heads: int = 8
    kv_heads: int = 4
    feed_forward: int = 1408
    tower_width: int = 384
    tower_blocks: int = 12
    global_layers: int = 2
    tower_heads: int = 6
    pixels: int = 224
    patch: int = 14
    taken: tuple[int, ...] = (3, 6, 9)
    """Blocks of the tower whose output is a feature beside the final one."""
    rows: int = 8
    tokens: int = 32
    prompt: int = 16
    """Tokens of the picture prompt in prefill and decode."""


TINY = Shape(
    vocabulary=64,
    width=32,
    layers=4,
    at=(1, 3),
    heads=4,
    kv_heads=2,
    feed_forward=48,
    tower_width=16,
    tower_blocks=3,
    global_layers=1,
    tower_heads=2,
    pixels=28,
    taken=(1, 2),
    rows=2,
    tokens=6,
    prompt=4,
)
"""For tests: milliseconds a step."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What both sides are given: a picture token at place 1 of every row, one square picture of one tile a row."""

    tokens: Int[Tensor, "B T"]
    tiles: Float[Tensor, "B 3 S S"]


def sample(shape: Shape, rows: int, tokens: int) -> Sample:
    """Random text and pictures, always the same for the same sizes."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(3, shape.vocabulary, (rows, tokens), generator=draws)
    ids[:, 0], ids[:, 1] = 1, shape.vocabulary
    return Sample(tokens=ids, tiles=torch.randn(rows, 3, shape.pixels, shape.pixels, generator=draws))


class Ours:
    """Our composition: tower and global layers behind ImageEncoder, TextBackbone, ImageAdapter, `train`."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.shape = shape
        text = TextBackbone(
            LlamaConfig(
                vocabulary=shape.vocabulary,
                width=shape.width,
                layers=shape.layers,
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                head_width=shape.width // shape.heads,
                feed_forward=shape.feed_forward,
                begin=1,
                stops=(),
                pad=0,
            )
        )
        tower = LlamaVisionTower(
            LlamaVisionConfig(
                width=shape.tower_width,
                blocks=shape.tower_blocks,
                heads=shape.tower_heads,
                hidden=4 * shape.tower_width,
                patch=shape.patch,
                pixels=shape.pixels,
                layers=("final", *shape.taken),
            ),
            weights="random",
        )
        look = ImageEncoderConfig(
            name="llama-vision", layers=("final", *shape.taken), tiles=4, global_layers=shape.global_layers
        )
        encoder = ImageEncoder(look, tower=tower)
        adapter = ImageAdapter(
            ImageAdapterConfig(
                at=shape.at,
                width=shape.width,
                features=encoder.width,
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                head_width=shape.width // shape.heads,
                feed_forward=shape.feed_forward,
                gate=GATE,
            )
        )
        self.model = MultimodalModel(text, {"image": encoder}, {"image": adapter}).eval().requires_grad_(False)
        _open_gates(encoder)
        self._steps: dict[str, Iterator[Step]] = {}

    def batch(self, given: Sample) -> Batch:
        """The rows as our model reads them: only the tile that is there."""
        tokens, (B, T) = given.tokens, given.tokens.shape
        encoder = self.model.encoders["image"]
        assert isinstance(encoder, ImageEncoder)
        targets = torch.full_like(tokens, NO_TARGET)
        targets[:, :-1] = tokens[:, 1:].masked_fill(tokens[:, 1:] >= self.shape.vocabulary, NO_TARGET)
        M = encoder.per_tile
        sees = torch.zeros(B, T, M, dtype=torch.bool)
        sees[:, 1:] = True
        return Batch(
            tokens=tokens,
            lengths=torch.full((B,), T),
            targets=targets,
            tiles=given.tiles,
            pictures=torch.arange(B),
            places=encoder.places((1, 1)).repeat(B, 1),
            owners=torch.arange(B).repeat_interleave(M),
            index=torch.arange(B * M).view(B, M),
            sees=sees,
            keys=tuple(str(row) for row in range(B)),
        )

    def step(self, cache: str = "none") -> Step:
        """One optimizer step on the same batch. `cache`: none, features, or stream (features and lower text)."""
        if cache not in self._steps:
            self._steps[cache] = self._training(cache)
        return next(self._steps[cache])

    @torch.no_grad()
    def tokens(self, count: int) -> list[int]:
        """A picture prompt read, and `count` tokens written greedily."""
        batch = self.batch(sample(self.shape, 1, self.shape.prompt))
        memory = self.model.remember(batch)
        steps = generate(
            self.model.text,
            batch.tokens,
            batch.lengths,
            before_prompt=self.model.before(memory, batch.sees),
            before_next=self.model.before(memory, batch.sees[:, -1:]),
            embeds=self.model.embeds(batch.tokens),
            max_new=count,
        )
        return [int(token) for token, _ in steps]

    def _training(self, cache: str) -> Iterator[Step]:
        accelerator = Accelerator(cpu=True)
        batch = self.batch(sample(self.shape, self.shape.rows, self.shape.tokens))
        if cache != "none":
            with torch.no_grad():
                # As the feature cache keeps them: in bfloat16, without their pixels.
                features = self.model.features(batch).bfloat16()
            batch = replace(batch, features=features, tiles=None, pictures=None)
        model, optimizer = prepare(accelerator, self.model, _TRAINING)
        assert isinstance(model, MultimodalModel)
        loss = token_loss
        if cache == "stream":
            below = FrozenStream(model)
            loss = partial(_with_stream, below)
        return train(accelerator, model, optimizer, _again(batch), loss, _TRAINING)


class Peer:
    """transformers' MllamaForConditionalGeneration, trained by the plain loop that its users write."""

    def __init__(self, shape: Shape) -> None:
        # Here, not above: our side's memory is measured in a process that never loads it.
        from transformers import MllamaConfig, MllamaForConditionalGeneration

        torch.manual_seed(0)
        self.shape = shape
        cross = [at + before for before, at in enumerate(shape.at)]
        grids = [[h, w] for h in range(1, 5) for w in range(1, 5) if h * w <= 4]
        config = MllamaConfig(
            text_config={
                "vocab_size": shape.vocabulary,
                "hidden_size": shape.width,
                "num_hidden_layers": shape.layers + len(shape.at),
                "num_attention_heads": shape.heads,
                "num_key_value_heads": shape.kv_heads,
                "intermediate_size": shape.feed_forward,
                "cross_attention_layers": cross,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": None,
            },
            vision_config={
                "hidden_size": shape.tower_width,
                "attention_heads": shape.tower_heads,
                "num_hidden_layers": shape.tower_blocks,
                "num_global_layers": shape.global_layers,
                "intermediate_size": 4 * shape.tower_width,
                "vision_output_dim": shape.tower_width * (1 + len(shape.taken)),
                "image_size": shape.pixels,
                "patch_size": shape.patch,
                "max_num_tiles": 4,
                # It takes the output of the blocks with these numbers (counted from 0): ours counts blocks run.
                "intermediate_layers_indices": [number - 1 for number in shape.taken],
                "supported_aspect_ratios": grids,
            },
            image_token_index=shape.vocabulary,
        )
        self.model = MllamaForConditionalGeneration(config).eval().requires_grad_(False)
        self.model.generation_config.eos_token_id = None
        _open_gates(self.model)
        self.learns: list[nn.Parameter] = []
        for name, weight in self.model.named_parameters():
            if "multi_modal_projector" in name or any(f"language_model.layers.{i}." in name for i in cross):
                weight.requires_grad_(True)
                self.learns.append(weight)
        self.optimizer = torch.optim.AdamW(
            self.learns, lr=1e-4, betas=_TRAINING.betas, eps=_TRAINING.epsilon, weight_decay=0.01, fused=True
        )

    def inputs(self, given: Sample) -> dict[str, Tensor]:
        """The rows as Mllama reads them: four tiles a picture, three of them empty."""
        tokens, (B, T) = given.tokens, given.tokens.shape
        pixels = torch.zeros(B, 1, 4, *given.tiles.shape[1:])
        pixels[:, 0, 0] = given.tiles
        real = torch.zeros(B, 1, 4, dtype=torch.long)
        real[..., 0] = 1
        sees = torch.zeros(B, T, 1, 4, dtype=torch.long)
        sees[:, 1:, :, 0] = 1
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones_like(tokens),
            "pixel_values": pixels,
            "aspect_ratio_ids": torch.ones(B, 1, dtype=torch.long),
            "aspect_ratio_mask": real,
            "cross_attention_mask": sees,
        }

    def step(self) -> float:
        """One optimizer step on the same batch; its loss."""
        given = sample(self.shape, self.shape.rows, self.shape.tokens)
        labels = given.tokens.masked_fill(given.tokens >= self.shape.vocabulary, NO_TARGET)
        loss = self.model(**self.inputs(given), labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.learns, _TRAINING.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def read(self) -> int:
        """A picture prompt read by one call of the model; the likeliest next token."""
        given = self.inputs(sample(self.shape, 1, self.shape.prompt))
        return int(self.model(**given, logits_to_keep=1).logits[0, -1].argmax())

    @torch.no_grad()
    def tokens(self, count: int, *, cache: str = "dynamic") -> list[int]:
        """A picture prompt read, and `count` tokens written greedily. `cache`: dynamic (the default), static, none."""
        settings = {"dynamic": {}, "static": {"cache_implementation": "static"}, "none": {"use_cache": False}}[cache]
        given = self.inputs(sample(self.shape, 1, self.shape.prompt))
        model: Any = self.model
        out = model.generate(**given, max_new_tokens=count, do_sample=False, **settings)
        assert isinstance(out, Tensor)
        return out[0, self.shape.prompt :].tolist()


@torch.no_grad()
def share_weights(ours: Ours, peer: Peer) -> None:
    """Gives our text model and adapter the peer's weights; the towers stay apart, for they do not compute the same."""
    there = peer.model.state_dict()
    text = {name: there[name] for name in ("lm_head.weight",)}
    text["model.embed_tokens.weight"] = there["model.language_model.embed_tokens.weight"][: ours.shape.vocabulary]
    text["model.norm.weight"] = there["model.language_model.norm.weight"]
    adapter = {
        "projector.out.weight": there["model.multi_modal_projector.weight"],
        "projector.out.bias": there["model.multi_modal_projector.bias"],
        "placeholder": there["model.language_model.embed_tokens.weight"][ours.shape.vocabulary],
    }
    cross = [at + before for before, at in enumerate(ours.shape.at)]
    plain = [i for i in range(ours.shape.layers + len(cross)) if i not in cross]
    for name, weight in there.items():
        head, _, rest = name.partition("model.language_model.layers.")
        if head or not rest:
            continue
        number, _, part = rest.partition(".")
        if int(number) in plain:
            text[f"model.layers.{plain.index(int(number))}.{part}"] = weight
        else:
            adapter[f"blocks.{cross.index(int(number))}.{_block_name(part)}"] = weight
    ours.model.text.load_state_dict(text)
    ours.model.adapters["image"].load_state_dict(adapter)


@torch.no_grad()
def difference(ours: Ours, peer: Peer) -> float:
    """The largest difference of logits, given the same projected features of one tile, as a share of their range."""
    shape = ours.shape
    batch = ours.batch(sample(shape, 1, shape.prompt))
    features = ours.model.features(batch)
    # From the first token on: before a picture Mllama lets some of it through, which is its own flaw.
    batch = replace(batch, features=features, tiles=None, pictures=None, sees=torch.ones_like(batch.sees))
    mine = ours.model(batch, every_position=True)
    media = peer.model.model.multi_modal_projector(features)[None]
    B, T, M = batch.sees.shape
    out = peer.model.model.language_model(
        input_ids=batch.tokens,
        cross_attention_states=media,
        cross_attention_mask=torch.zeros(B, 1, T, M),
        full_text_row_masked_out_mask=torch.ones(B, 1, T, 1),
        use_cache=False,
    )
    theirs = peer.model.lm_head(out.last_hidden_state)
    return float((mine - theirs).abs().max() / (theirs.max() - theirs.min()))


def _block_name(part: str) -> str:
    for theirs, here in (
        ("cross_attn_attn_gate", "attention_gate"),
        ("cross_attn_mlp_gate", "feed_forward_gate"),
        ("cross_attn.", "attention."),
        ("mlp.", "feed_forward."),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "feed_forward_norm"),
    ):
        if part.startswith(theirs):
            return here + part.removeprefix(theirs)
    raise ValueError(f"transformers' cross-attention layer has a part that is not known here: {part}")


@torch.no_grad()
def _open_gates(module: nn.Module) -> None:
    for name, weight in module.named_parameters():
        if "gate" in name and weight.numel() == 1:
            weight.fill_(GATE)


def _with_stream(below: FrozenStream, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    return token_loss(model, batch, stream=below(batch))


def _again(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch
