"""The Deep Q-Network: network, replay, the stable-baselines3 reference trainer, export to a bundle.

Needs the `train` extra; nothing here is imported by the live process.
"""
