#!/usr/bin/env python3
"""trtprune inside a Python program: load an engine directory once, ask, stream, ask on.

    trtprune build --model demo --keep 64 -o demo_out
    python examples/embed_in_python.py demo_out examples/scene.png "What color is the star?" "What color is the circle?"

The first question is answered at three budgets out of the same directory; the answer to it is then streamed, and the
others follow as turns of one conversation, which goes through the vision tower once.
"""

from __future__ import annotations

import argparse
import sys

from PIL import Image

import trtprune


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", help="what trtprune build wrote")
    parser.add_argument("image")
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    arguments = parser.parse_args()
    try:
        answer(arguments)
    except trtprune.TrtpruneError as error:  # all that can go wrong as expected; anything else is a bug
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def answer(arguments: argparse.Namespace) -> None:
    vlm = trtprune.load(arguments.directory)  # reads and checks; keep it for the life of the program
    low, high = vlm.config.pruning.keep_range
    image = arguments.image
    first, *more = arguments.questions

    # One build serves every budget in its range.
    for keep in sorted({low, vlm.config.pruning.keep, high}):
        result = vlm.generate(image, first, keep=keep, max_new_tokens=arguments.max_new_tokens)
        print(
            f"keep {result.kept_tokens} of {result.visual_tokens}: {result.text!r}, "
            f"first token after {result.timings['total'] - result.timings['decode']:.0f} ms, "
            f"KV cache {result.kv_cache_bytes / 1e6:.1f} MB"
        )

    # A picture need not be a file.  Nothing is computed before the first piece is asked for.
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    pieces = vlm.stream(picture, first, max_new_tokens=arguments.max_new_tokens)
    print("streamed: ", end="")
    for piece in pieces:
        print(piece, end="", flush=True)
    print(f" [{len(pieces.result.token_ids)} tokens, {pieces.result.finish_reason}]")

    # Turns of a conversation.  A text-aware method chooses the tokens anew for each question (repick=False does not).
    if more:
        chat = vlm.chat(picture)
        for question in (first, *more):
            print(f"{question} -> {chat.ask(question, max_new_tokens=arguments.max_new_tokens).text}")


if __name__ == "__main__":
    sys.exit(main())
