"""Reusable pieces of vision-language models: towers, projector, decoder.

Each module has a frozen config read from the checkpoint's ``config.json`` (with transformers' defaults), the list of
weights it needs with their shapes, and a function that adds it to a :class:`trtprune.graph.Graph`.
Weight keys are the names that transformers 5 gives the modules (see ``models.weights``).
"""
