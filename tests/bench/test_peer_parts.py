"""transformers as a peer, of a model whose tower and projector have other names there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.kit.runtime_kit import Kit, picture
from tests.models.test_smolvlm import case
from trtprune.bench.cells import Workload
from trtprune.bench.transformers_peer import TransformersPeer


def test_idefics3(tmp_path: Path) -> None:
    kit = Kit.make(tmp_path / "model", replace(case("idefics3", seed=7, layers=2), max_positions=1024))
    peer = TransformersPeer(kit.path, "float32", Workload(picture(1), "Why?", 3), threads=1)
    vlm = kit.load("none", method="none")
    ours = vlm.generate(picture(1), "Why?", max_new_tokens=3, ignore_eos=True)
    sample = peer.run()
    assert (sample.prompt_tokens, list(sample.token_ids)) == (ours.prompt_tokens, ours.token_ids)
    assert peer.visual_tokens() == ours.visual_tokens
    assert 0 < sample.stages["vision"] < sample.first_token
