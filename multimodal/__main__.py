"""`python -m multimodal doctor | chat | demo`."""

from __future__ import annotations

import sys

USAGE = """python -m multimodal VERB

  doctor             what this machine has, what is missing, and the command that mends it
  chat RUN [IMAGE]   talk with a run's model, or with a backbone alone; /image PATH shows it a picture
  demo               fetch the kit, train an image adapter, evaluate it, write the report
"""


def main(words: list[str]) -> int:
    """Runs one verb; heavy imports happen inside it, so that usage and doctor answer at once."""
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb == "doctor":
        from multimodal.doctor import main as doctor

        return doctor()
    if verb == "chat" and rest:
        from multimodal.conversation import converse

        return converse(rest[0], rest[1:])
    if verb == "demo":
        from multimodal.demo import main as demo

        return demo(rest)
    print(USAGE, end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
