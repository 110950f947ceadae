"""Servers around one engine directory; needs the extra ``[serve]``.

``engine`` runs the batch in a thread of its own, ``app`` speaks OpenAI's protocol over HTTP.
"""
