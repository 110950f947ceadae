"""Prompts from a checkpoint's own files: the chat template and the tokenizer, neither of which is trusted.

A chat template is a program, and ``tokenizer.json`` is one in all but name: both can be written to run for hours, to
take all memory, or to end the process.  So they run in a second process with limits (``process`` starts it, ``service``
is what runs in it, ``model`` what it does); this package imports only what that process needs, to start quickly.
"""
