"""The graphs of a build, in the order of its chain: from a family's components and a method's own.

``vision, embed``, ``clip_text`` if the method reads CLIP's text, ``pruner, decoder`` for one that prunes before the
decoder; for one that prunes inside it ``vision, embed``, ``raters`` if it needs them, ``rank`` if the rank of the
attention decides the number of tokens, and ``decoder.0, pruner.0, decoder.1, …``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtprune.engine_dir.roles import CLIP_TEXT, DECODER, EMBED, PACK, VISION, Part
from trtprune.pruning import BuildContext
from trtprune.pruning.inputs import FROM_CLIP, FROM_VISION

if TYPE_CHECKING:
    from trtprune.compiler.plan import Plan
    from trtprune.compiler.quantized import QuantizedWeights
    from trtprune.graph import Graph
    from trtprune.models.clip_text import Clip
    from trtprune.models.spec import VisionHead

__all__ = ["describe", "make_graphs"]


def make_graphs(plan: Plan, quantized: QuantizedWeights | None) -> dict[Part, Graph]:
    """The graph of each component, in the order of the chain."""
    options, schedule = plan.method.validate_options(plan.pruning.options), plan.pruning.schedule
    needs = plan.method.needs_of(options)
    clip = plan.clip if plan.clip is not None and needs & {*FROM_CLIP} else None
    points = schedule.points if schedule is not None else ()
    moved = {**(quantized.moved if quantized else {}), **(clip.tensors if clip else {})}
    graphs = plan.model.build_components(
        dtype=plan.dtype,
        lowering=plan.lowering,
        moved=moved,
        quantized=quantized.matrices if quantized else None,
        cuts=points,
        raters=plan.method.attention(options),
        vision_heads=_clip_head(clip) if clip else None,
        vision_outputs=[name for name in FROM_VISION if name in needs and name not in FROM_CLIP],
        shallow_layer=plan.method.tower_layer(options),
    )
    if clip is not None:
        from trtprune.models.clip_text import build_clip_text

        graphs[CLIP_TEXT] = build_clip_text(
            clip, dtype=plan.dtype, lowering=plan.lowering, fixed_length=plan.backend != "onnxruntime"
        )
    own = {Part(*key): g for key, g in plan.method.build_graphs(_context(plan, quantized, clip), options).items()}
    segments = range(len(points) + 1) if points else (None,)
    decoders = {Part(DECODER, k): graphs[Part(DECODER, k).name] for k in segments}
    chain = {Part(role): graphs[role] for role in (VISION, PACK, EMBED, CLIP_TEXT) if role in graphs}
    chain |= {part: g for part, g in own.items() if part.segment is None}
    for part, decoder in decoders.items():
        chain[part] = decoder
        chain |= {point: g for point, g in own.items() if part.segment is not None and point.segment == part.segment}
    return chain


def _context(plan: Plan, quantized: QuantizedWeights | None, clip: Clip | None) -> BuildContext:
    from trtprune.graph import Graph

    spec = plan.spec

    def make(name: str) -> Graph:
        return Graph(  # a method may read weights of the decoder around it
            name,
            dtype=plan.dtype,
            lowering=plan.lowering,
            tensors={**plan.model.weight_tensors(), **(quantized.moved if quantized else {})},
            quantized=quantized.matrices if quantized else None,
            pieces=plan.pieces,
        )

    return BuildContext(
        make,
        hidden_size=spec.hidden_size,
        levels=spec.deepstack_levels,
        depth=spec.num_layers,
        layer_access=plan.model.layer_access,
        num_tokens=spec.visual_tokens if plan.model.processor.fixed_tokens else None,
        most_crops=plan.model.processor.crops_range[1],
        widths={"C": spec.vision_width, "K": spec.key_width} | ({"P": clip.width} if clip else {}),
        float64=plan.backend == "onnxruntime",
    )


def describe(graph: Graph, plan: Plan, name: str) -> None:
    """Writes a graph's description into its file: component, model, method, and number formats."""
    model, revision = plan.checkpoint.id, plan.checkpoint.revision
    of = f"{model} at revision {revision}" if revision else model
    scheme = plan.checkpoint.scheme
    kinds = ([scheme.label] if scheme else []) + ([f"{plan.weight_dtype} weights"] if plan.weight_dtype else [])
    stored = ", ".join([plan.dtype, *kinds])
    graph.doc_string = (
        f"Component {name} of {of} ({plan.model.family}), in {stored}, of a build with visual-token pruning "
        f"{plan.method.name}.  config.json one folder above says how components go together."
    )
    graph.metadata = {
        "trtprune.component": name,
        "trtprune.model": model,
        **({"trtprune.revision": revision} if revision else {}),
        "trtprune.family": plan.model.family,
        "trtprune.method": plan.method.name,
        "trtprune.dtype": plan.dtype,
        **({"trtprune.weight_dtype": plan.weight_dtype} if plan.weight_dtype else {}),
    }


def _clip_head(clip: Clip) -> dict[str, VisionHead]:
    from trtprune.models.clip_text import project_patches
    from trtprune.models.spec import VisionHead

    return {"clip_image_embeds": VisionHead(lambda g, features: project_patches(g, clip, features), clip.width)}
