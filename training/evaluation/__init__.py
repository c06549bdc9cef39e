"""Evaluation of finished runs: a classifier decides whether a mesh shows the category of its prompt.

The classifier uses the categories and the renderer of the embedded prior. It has another network than the
prior and was trained on other random objects.
"""
