"""Tiny speech models with random weights in folders of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)


def whisper(folder: Path, *, seed: int = 0) -> Path:
    config = WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    return _saved(folder, lambda: WhisperModel(config), WhisperFeatureExtractor(feature_size=80), seed)


def wav2vec2(folder: Path, *, seed: int = 0) -> Path:
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    return _saved(folder, lambda: Wav2Vec2Model(config), Wav2Vec2FeatureExtractor(do_normalize=True), seed)


def w2v_bert(folder: Path, *, seed: int = 0) -> Path:
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        feature_projection_input_dim=160,
        conv_depthwise_kernel_size=3,
    )
    return _saved(folder, lambda: Wav2Vec2BertModel(config), SeamlessM4TFeatureExtractor(), seed)


def _saved(folder: Path, make, extractor, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make().save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
