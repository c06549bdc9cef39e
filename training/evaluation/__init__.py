"""Evaluation of finished runs: a classifier decides whether a mesh shows the category of its prompt.

The classifier uses the categories and the renderer of the embedded prior. The network of the classifier
differs from that of the prior, and it was trained on other random objects.
"""
