"""Evaluation of finished runs: a classifier decides whether a mesh shows the category of its prompt.

The classifier uses the categories and the renderer of the embedded prior. Its network differs from that of
the prior, and it was trained on other random objects.
"""
