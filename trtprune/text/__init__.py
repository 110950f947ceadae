"""Prompts from a checkpoint's own files: the chat template and the tokenizer, both untrusted.

A chat template is a program, and ``tokenizer.json`` can act like one: both can run for hours, take all memory, or end
the process.  So they run in a second process with limits: ``process`` starts it, ``service`` runs in it, ``model`` does
its work.  This package imports only what that process needs, so that it starts quickly.
"""
