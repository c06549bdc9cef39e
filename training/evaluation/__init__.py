"""Evaluation of finished runs: a classifier decides whether a mesh shows the category of its prompt.

The classifier shares the categories and the renderer with the embedded prior. Its network is different and
was trained on other random objects.
"""
