"""A stand-in for an Ollama server: its documented native API over scripted or rule-made answers, with faults.

`server` serves it, as a process (`tandem ollama`) or in a thread of a test; `standin` is what is served: models,
queue, faults, requests seen; `answers` says what the model says. Nothing here runs a model, and the daemon
imports nothing of it: to the daemon it is an Ollama server like any other.
"""
