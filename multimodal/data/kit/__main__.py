"""`python -m multimodal.data.kit [FOLDER]`: fetches and builds the default kit; FOLDER is downloads/ unless given."""

from __future__ import annotations

import sys
from pathlib import Path

from multimodal.data.kit import DOWNLOADS, CannotFetchError, prepare_kit


def main(words: list[str]) -> int:
    if len(words) > 1 or any(word.startswith("-") for word in words):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        kit = prepare_kit(Path(words[0]) if words else DOWNLOADS)
    except (CannotFetchError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    for split, counts in kit.report["pictures"].items():
        print(f"{split:24} {sum(counts.values()):6}  {', '.join(f'{name} {n}' for name, n in counts.items())}")
    print(f"text model {kit.text}, image encoder {kit.encoder}, shards {kit.shards}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
